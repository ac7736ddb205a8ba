"""The benchmark measures the same work on both sides. python -m pytest tests/test_bench.py

No time is asserted here."""

import pytest
import torch

from lab.check import bench
from lab.check.bench_cases import examples_of, flops_of
from lab.check.bench_sides import generate_ours, generate_usual, step_ours, step_usual
from lab.errors import RunError

TINY = {"n_layer": 2, "n_head": 2, "n_embd": 16}
CPU = torch.device("cpu")


@pytest.mark.parametrize("kd", ["word", "none"])
def test_a_step_is_measured_on_both_sides(gpt2_tok, kd):
    case = {"shape": TINY, "kd": kd, "batch": 2, "steps": 2, "length": 40}
    ours, usual = (f(case, CPU, torch.float32) for f in (step_ours, step_usual))
    assert set(ours) | {"padding"} == set(usual) and usual["padding"] == 0
    assert ours["flops"] / ours["rate"] == pytest.approx(usual["flops"] / usual["rate"])  # the same work an example


def test_both_sides_generate_as_many_tokens(gpt2_tok):
    for top_k in (None, 20):
        case = {"shape": TINY, "prompts": 6, "length": 40, "top_k": top_k, "stop": -1}
        ours, usual = (f(case, CPU, torch.float32) for f in (generate_ours, generate_usual))
        assert ours["tokens"] == usual["tokens"] == 6 * (11 if top_k is None else 40)


def test_the_operations_of_a_step_are_counted(gpt2_tok):
    case = {"shape": TINY, "kd": "none", "length": 40, "vocab": 1000}
    (example,) = examples_of(case, 1)
    supervised = 11 + 40  # the answer and EOS; the LM row is supervised throughout
    tokens = len(example.qa_ids) + len(example.lm_ids)
    blocks = 2 * 12 * 16**2  # a layer: 3 C^2 and C^2 of attention, 8 C^2 of the MLP
    assert flops_of(case, [example]) == 6 * (blocks * tokens + 1000 * 16 * supervised)
    assert flops_of(case | {"kd": "word"}, [example]) == 8 * (blocks * tokens + 1000 * 16 * supervised)


def test_a_measurement_that_fails_says_why(capsys):
    with pytest.raises(RunError, match=r"a case, ours in .*: KeyError"):
        bench.in_child({"what": "generate", "name": "a case", "dtype": "float32"}, "ours", "cpu", "")
    for arguments, said in ((["speed"], "part 'speed'"), (["--rounds", "0"], "--rounds 0"), (["--against", "x"], "x:")):
        with pytest.raises(SystemExit) as stopped:
            bench.main(arguments)
        assert stopped.value.code == 2 and said in capsys.readouterr().err
    assert bench.main(["step", "--data-dir", "/nowhere", "--device", "none"]) == 1


def test_an_earlier_version_is_measured_by_its_own_code(gpt2_tok):
    """Here it is this version itself: the same work, so the same number of tokens, in a child of its own."""
    case = {"what": "generate", "name": "tiny", "dtype": "float32", "sides": ["usual", "before", "ours"]}
    case |= {"shape": TINY, "prompts": 4, "length": 40, "top_k": 20, "stop": -1}
    result = bench.compare(case, 1, "cpu", str(bench.ROOT))
    assert result["before"]["tokens"] == result["ours"]["tokens"] == 4 * 40
    assert "tiny" in bench.line_of(result, {}) and set(result["ratio to before"]) == {"rate", "spread", "above", "peak"}
