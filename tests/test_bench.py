"""The benchmark measures the same work on all sides. python -m pytest tests/test_bench.py

No time is asserted here."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import prompts_of, tiny

from data import make_batch
from lab.check import bench
from lab.check.bench_cases import cases_of, examples_of, flops_of, model_of
from lab.check.bench_sides import TimedTeacher, generate_ours, generate_usual, step_ours, step_usual
from lab.check.launches import NARROW, SizeOnly, launches_of_a_step
from lab.errors import RunError
from lab.fast import cache as cache_file
from lab.fast import decode as decode_file
from lab.fast.cache import KVCache
from lab.fast.decode import decode
from model import GPT

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
        bench.in_child({"what": "generate", "name": "a case", "dtype": "float32"}, "ours", "cpu")
    for arguments, said in ((["speed"], "part 'speed'"), (["--rounds", "0"], "--rounds 0"), (["--against", "x"], "x:")):
        with pytest.raises(SystemExit) as stopped:
            bench.main(arguments)
        assert stopped.value.code == 2 and said in capsys.readouterr().err
    assert bench.main(["step", "--data-dir", "/nowhere", "--device", "none"]) == 1


def test_an_earlier_version_is_measured_by_its_own_code(gpt2_tok):
    """Here it is this version itself: the same work, so the same number of tokens, in a child of its own."""
    case = {"what": "generate", "name": "tiny", "dtype": "float32", "sides": ["usual", "before", "ours"]}
    case |= {"shape": TINY, "prompts": 4, "length": 40, "top_k": 20, "stop": -1}
    result = bench.compare(case, 1, "cpu", str(bench.ROOT), "")
    assert result["before"]["tokens"] == result["ours"]["tokens"] == 4 * 40
    assert "tiny" in bench.line_of(result, {}) and set(result["ratio to before"]) == {"rate", "spread", "above", "peak"}


def other_checkout(folder, name):
    """A checkout whose benchmark, at `name`, prints its case as a measurement."""
    path = folder / name
    path.parent.mkdir(parents=True)
    found = "{'seconds': 2.0, 'case': sys.argv[-1], 'threads': os.environ['OMP_NUM_THREADS']}"
    path.write_text(f"import json, os, sys\nprint('hello')\nprint(json.dumps({found}))\n")
    return str(folder)


@pytest.mark.parametrize("name", ["lab/bench.py", "lab/check/bench.py"])
def test_another_checkout_of_either_layout_gets_the_same_case_as_ours(tmp_path, name):
    case = {"name": "x", "dtype": "float32", "what": "method", "arguments": ["--runs-dir", "RUNS/a", "--order", "b"]}
    found = bench.in_child(case, "before", "cpu", other_checkout(tmp_path, name), "/r/before-0")
    wanted = case | {"arguments": ["--runs-dir", "/r/before-0/a", "--order", "b"], "side": "ours"}
    assert json.loads(found["case"]) == wanted and found["threads"] == str(torch.get_num_threads())
    assert 10**6 < found["peak"] < 10**10


def test_sides_take_turns_and_each_finds_its_own_teachers_again(monkeypatch):
    """A round's cases share a folder, other sides and rounds have others; the usual way is left out."""
    asked, seconds = [], iter((4.0, 2.0, 6.0, 2.0, 10.0, 2.0))

    def in_child(case, side, device, against, runs):
        asked.append((side, case["seed"], runs))
        return {"seconds": next(seconds), "peak": 3e9 if side == "ours" else 2e9}

    monkeypatch.setattr(bench, "in_child", in_child)
    case = {"name": "x", "dtype": "float32", "what": "method", "sides": ["usual", "before", "ours"]}
    result = bench.compare(case, 3, "cpu", "/there", "/f")
    assert asked == [(side, i, f"/f/{side}-{i}") for i in range(3) for side in ("before", "ours")]
    assert result["ratio to before"] == {"rate": 3.0, "spread": [2.0, 5.0], "peak": 1.5}
    assert bench.line_of(result, {}).endswith(
        "2.0 s, 3.00 GB, before 6.0 s, speed 3.00 (2.00-5.00), memory in all 1.50"
    )
    found, trained = (case["arguments"] for case in cases_of("method", True, "", {}, "cpu")[3:1:-1])
    assert found[-2:] == trained[-2:] == ["--teachers", "RUNS/teachers"] and found != trained


def test_a_teachers_clock_counts_what_it_computes_once(gpt2_tok):
    case = {"shape": TINY, "length": 40}
    examples = examples_of(case, 2)
    rows = make_batch(examples, [0, 1], 2)[0].rows
    teacher = TimedTeacher(model_of(case), torch.float32)
    teacher.states(rows)
    assert teacher.seconds == 0.0  # nothing is remembered yet
    teacher.remember(examples, True, 2**30)
    first = teacher.states(rows)
    seconds = teacher.seconds
    assert seconds > 0 and teacher.states(rows).equal(first) and teacher.seconds == seconds


# ---------------------------------------------------------------------- what a GPU would wait for


def test_the_decoding_that_is_counted_makes_the_steps_of_the_real_one(monkeypatch):
    """As many, with as many rows and columns each, where rows end at the same tokens and memory is short."""
    assert SizeOnly.budget(tiny()) == 2**31 // (2 * 12 * 768 * 2)  # that of the 124M model in bfloat16
    monkeypatch.delattr(SizeOnly, "column_bytes")
    monkeypatch.setattr(cache_file, "cache_bytes", lambda device: 400 * KVCache.column_bytes(tiny()))
    prompts, limits = prompts_of([5, 30, 1, 7, 12, *[3] * 30]), [20, 9, 60, 30, 40, *[25] * 30]
    ends = torch.tensor([1 + 7 * i % 29 for i in range(35)])

    def shapes_and_tokens(kind):
        shapes, step = [], kind.step
        with monkeypatch.context() as patch:
            patch.setattr(decode_file, "KVCache", kind)
            patch.setattr(kind, "step", lambda c, *a: shapes.append((len(a[1]), c.columns, a[2])) or step(c, *a))
            return shapes, decode(tiny(), prompts, limits, 7, lambda x, rows, t: torch.where(t + 1 < ends[rows], 1, 7))

    shapes, tokens = shapes_and_tokens(KVCache)
    assert shapes_and_tokens(SizeOnly) == (shapes, tokens)
    assert len({*shapes}) > 8 and max(rows * columns for rows, columns, _ in shapes) <= 400


def test_a_layer_of_a_decoding_step_launches_eleven_operations():
    """Two layer norms, four products with their biases, two sums, GELU, attention, and one write to the cache."""
    one, three = (launches_of_a_step(GPT(replace(NARROW, n_layer=n))) for n in (1, 3))
    assert three - one == 2 * 11
