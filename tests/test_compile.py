"""--compile: what is compiled, how often, and that nothing but rounding changes. python -m pytest tests/test_compile.py

torch.compile hands each graph to a backend. Here it counts them and runs them as they are, so no compiler is needed."""

from functools import partial
from pathlib import Path

import pytest
import torch
from test_decode import LENGTHS, LIMITS, Watched, bounds, sampled
from tiny import prompts_of, tiny
from whole_runs import run, without_dropout_folder

import train
from eval import greedy
from lab.fast import decode as decode_file
from lab.fast.cache import KVCache
from lab.fast.compiled import compile_model
from lab.fast.decode import beam_search, decode
from lab.files import read_jsonl
from lab.run.device import has_compiler


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that were compiled; those of a decoding step have all layers."""
    found = []

    def backend(graph, inputs):
        found.append(graph.code)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    yield found
    torch._dynamo.reset()


def of_steps(graphs, layers=2) -> list[str]:
    return [code for code in graphs if code.count("scaled_dot_product_attention") == layers]


def test_one_compilation_of_a_step_serves_all_shapes_and_models(graphs, monkeypatch):
    """But for a single row, and for columns that are all in use. The tokens are the same."""
    bounds(monkeypatch, room=1, columns=400, multiple=4)
    monkeypatch.setattr(decode_file, "KVCache", Watched)
    Watched.shapes.clear()
    prompts, limits = prompts_of([*LENGTHS, 30, 2, 3, 50, *[5] * 20]), [*LIMITS, 1, 20, 33, 5, *[15, 3] * 10]
    for seed in range(2):
        plain, compiled = tiny(seed), tiny(seed)
        compile_model(compiled)
        for pick in (greedy, sampled(len(prompts))):
            assert decode(compiled, prompts, limits, 3, pick) == decode(plain, prompts, limits, 3, pick)
        assert beam_search(compiled, prompts, limits, 3, 2) == beam_search(plain, prompts, limits, 3, 2)
        assert 1 <= len(of_steps(graphs)) <= 4
    assert len({*Watched.shapes}) > 20


def test_with_compile_all_models_of_a_run_are_compiled(lab, tmp_path, monkeypatch, graphs):
    """In training and decoding, and teachers that were found, too. They learn the same to rounding, without dropout,
    which draws other masks when compiled."""
    if not has_compiler():
        pytest.skip("needs a C++ compiler, since a run asks for one")
    losses, model, ready, step = [], without_dropout_folder(tmp_path), [], KVCache.step
    monkeypatch.setattr(KVCache, "step", lambda c, model, *more: ready.append(model) or step(c, model, *more))
    options = ["--model", model, "--kd", "seq", "--log-every", "1", "--lr", "1e-4", "--epochs", "1"]
    for n, more in enumerate(([], ["--compile"], ["--compile", "--gamma", "0"])):  # the third finds its teachers
        ready.clear()
        folder = run(lab, *options, *more, "--runs-dir", str(tmp_path / f"runs{n > 0}"))
        losses.append([line["loss"] for line in read_jsonl(folder / "log.jsonl")])
        assert {hasattr(model, "read_tokens") for model in ready} == {n > 0}
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert 1 <= len(of_steps(graphs, layers=4)) <= 4


@pytest.mark.parametrize("compiler", ["no-compiler", " "])
def test_compile_without_a_compiler_is_an_error(compiler, lab, monkeypatch, capsys):
    monkeypatch.setenv("CXX", compiler)
    assert train.main([*lab, "--compile"]) == 1
    assert "--compile: needs a C++ compiler" in capsys.readouterr().err
    assert not Path(lab[5]).exists()
