"""The benchmark measures the same work on both sides. python -m pytest tests/test_bench.py

No time is asserted here."""

import pytest
import torch

from lab import bench

TINY = {"n_layer": 2, "n_head": 2, "n_embd": 16}
CPU = torch.device("cpu")


@pytest.mark.parametrize("kd", ["word", "none"])
def test_a_step_is_measured_on_both_sides(gpt2_tok, kd):
    case = {"shape": TINY, "kd": kd, "batch": 2, "steps": 2, "length": 40}
    ours, usual = (f(case, CPU, torch.float32) for f in (bench.step_ours, bench.step_usual))
    assert set(ours) | {"padding"} == set(usual) and usual["padding"] == 0
    assert ours["flops"] / ours["rate"] == pytest.approx(usual["flops"] / usual["rate"])  # the same work an example


def test_both_sides_generate_as_many_tokens(gpt2_tok):
    for top_k in (None, 20):
        case = {"shape": TINY, "prompts": 6, "length": 40, "top_k": top_k, "stop": -1}
        ours, usual = (f(case, CPU, torch.float32) for f in (bench.generate_ours, bench.generate_usual))
        assert ours["tokens"] == usual["tokens"] == 6 * (11 if top_k is None else 40)


def test_the_operations_of_a_step_are_counted(gpt2_tok):
    case = {"shape": TINY, "kd": "none", "length": 40, "vocab": 1000}
    (example,) = bench.examples_of(case, 1)
    supervised = 11 + 40  # the answer and EOS; the LM row is supervised throughout
    tokens = len(example.qa_ids) + len(example.lm_ids)
    blocks = 2 * 12 * 16**2  # a layer: 3 C^2 and C^2 of attention, 8 C^2 of the MLP
    assert bench.flops_of(case, [example]) == 6 * (blocks * tokens + 1000 * 16 * supervised)
    assert bench.flops_of(case | {"kd": "word"}, [example]) == 8 * (blocks * tokens + 1000 * 16 * supervised)


def test_a_measurement_that_fails_says_why(capsys):
    with pytest.raises(bench.RunError, match="a case, ours: KeyError"):
        bench.measure({"what": "generate", "name": "a case", "dtype": "float32"}, "ours", "cpu")
    with pytest.raises(SystemExit) as stopped:
        bench.main(["speed"])
    assert stopped.value.code == 2 and "part 'speed'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench.main(["--rounds", "0"])
    assert bench.main(["step", "--data-dir", "/nowhere", "--device", "none"]) == 1
