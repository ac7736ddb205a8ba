"""What is compared in our runs, and how it is judged: on made-up ones. python -m pytest tests/test_comparisons.py"""

import pytest
from matplotlib.figure import Figure
from paper_runs import finish, same

from lab.paper.__main__ import LAPTOP, main
from lab.paper.comparisons import COMPARISONS, EASIEST_FIRST, HARDEST_FIRST, WORDINGS, judge
from lab.paper.experiments import cells_of, keys_of
from lab.paper.runs import RunKey, found

ORDERS = (HARDEST_FIRST, EASIEST_FIRST)


def runs_of(folder, scores: dict, before=lambda stage, epoch, task: 1.0) -> dict:
    """Runs of two epochs a stage. scores: key -> the score of all tasks at the end, or {task: score}."""
    for key, last in scores.items():
        last = same(key.order, last) if isinstance(last, float) else last
        finish(folder, key, last, 2, before, extra=LAPTOP)
    return found(scores, [folder], LAPTOP)


def outcomes(what: str, runs: dict) -> dict:
    """(claim's beginning, comparison) -> (mean difference, pairs, outcome), of those that have a pair."""
    return {
        (j.comparison.claim.split(" (")[0], str(j.comparison)): (round(j.mean, 6), j.pairs, j.outcome)
        for j in judge(what, runs)
        if j.pairs
    }


def test_every_run_of_the_comparisons_is_made_and_every_label_is_compared():
    for what, wanted in (("table4", "comparisons"), ("toy", "toy")):
        labels = {key.label for key in keys_of(wanted, [0])}
        compared = {label for c in COMPARISONS[what] for label in (c.other, c.base) if label}
        assert compared <= labels and len(COMPARISONS[what]) == len(set(COMPARISONS[what]))


def test_methods_are_paired_by_order_and_seed_and_judged_by_the_interval(tmp_path):
    """Differences 1, 2, 3 and 1: 1.75 with half an interval of 3.182 · 0.957 / 2 = 1.52."""
    gains = {(HARDEST_FIRST, 0): 1.0, (HARDEST_FIRST, 1): 2.0, (EASIEST_FIRST, 0): 3.0, (EASIEST_FIRST, 1): 1.0}
    scores = {RunKey(*pair[:1], "LAMOL", pair[1]): 10.0 * pair[1] for pair in gains}
    scores |= {RunKey(order, "Word-KD", seed): 10.0 * seed + gain for (order, seed), gain in gains.items()}
    scores |= {RunKey(HARDEST_FIRST, "Seq-KD", 0): 50.0}  # one pair says nothing of its error
    runs = runs_of(tmp_path, scores)
    claim = "L2KD passes LAMOL"
    assert outcomes("table4", runs)[claim, "Word-KD - LAMOL"] == (1.75, 4, "held")
    assert outcomes("table4", runs)[claim, "Seq-KD - LAMOL"] == (50.0, 1, "undecided")
    judged = next(j for j in judge("table4", runs) if j.pairs == 4)
    assert (judged.low, judged.high) == pytest.approx((1.75 - 1.523, 1.75 + 1.523), abs=1e-3)
    worse = {key: 20.0 - (key.label != "LAMOL") * gains[key.order, key.seed] for key in scores if key.label != "Seq-KD"}
    assert outcomes("table4", runs_of(tmp_path / "worse", worse))[claim, "Word-KD - LAMOL"] == (-1.75, 4, "not held")


def test_easiest_first_is_compared_with_multitask_of_the_same_seed(tmp_path):
    scores = {RunKey(order, "LAMOL", seed): 60.0 + seed for order in ORDERS for seed in (0, 1)}
    scores[RunKey(HARDEST_FIRST, "LAMOL", 0)] = 0.0  # the other order has no part in it
    scores |= {RunKey(HARDEST_FIRST, "Multi QA", seed): 59.0 for seed in (0, 1)}
    found = outcomes("table4", runs_of(tmp_path, scores))
    assert found["easiest first, lifelong learning passes multitask", "LAMOL - Multi QA"] == (1.5, 2, "undecided")


def test_the_dependence_on_the_order_is_the_mean_deviation_of_the_tasks(tmp_path):
    """Deviations of 3 / √2 on one of five tasks, and of 1 / √2 on it: 0.4 / √2 less."""
    scores = {RunKey(order, label, 0): same(order, 50.0) for order in ORDERS for label in ("LAMOL", "Word-KD")}
    for order in ORDERS:  # a task is compared with itself, wherever it stands in the order
        scores[RunKey(order, "LAMOL", 0)]["rnnlg.tv"] = 70.0
    scores[RunKey(HARDEST_FIRST, "LAMOL", 0)]["e2e"] = 53.0
    scores[RunKey(HARDEST_FIRST, "Word-KD", 0)]["e2e"] = 51.0
    found = outcomes("table4", runs_of(tmp_path, scores))
    assert found["L2KD depends less on the order", "Word-KD - LAMOL"][0] == pytest.approx(0.4 / 2**0.5, abs=1e-6)


def test_forward_transfer_and_the_first_epochs_are_read_off_the_curves(tmp_path):
    """rnnlg.hotel stands at 7 after the first stage and at 12 after the second. e2e has 5 and 15 in its two epochs."""

    def before(stage, epoch, task):
        curve = {("rnnlg.hotel", 1, 2): 7.0, ("rnnlg.hotel", 2, 2): 12.0, ("e2e", 1, 1): 5.0, ("e2e", 1, 2): 15.0}
        return curve.get((task, stage, epoch), 1.0)

    key = RunKey(HARDEST_FIRST, "Word-KD", 0)
    runs = runs_of(tmp_path, {key: 50.0}, before) | runs_of(tmp_path, {key._replace(label="LAMOL"): 50.0})
    found = outcomes("table4", runs)
    assert found["rnnlg.hotel rises before its first example", "Word-KD"][0] == 5.0
    assert found["rnnlg.hotel rises before its first example", "LAMOL"][0] == 0.0
    assert found["soft targets are faster in the first three epochs", "Word-KD - LAMOL"][0] == 10.0 - 1.0
    key = key._replace(order=WORDINGS)
    scores = lambda e: lambda stage, epoch, task: {1: 4.0, 2: 6.0}[epoch] * e if stage else 1.0  # noqa: E731
    runs = runs_of(tmp_path, {key: 50.0}, scores(2)) | runs_of(tmp_path, {key._replace(label="LAMOL"): 50.0}, scores(1))
    assert (
        outcomes("toy", runs)[
            "of several wordings, soft targets teach more in the first three epochs", "Word-KD - LAMOL"
        ][0]
        == 5.0
    )


def test_the_comparisons_are_printed_and_drawn_as_a_forest_plot(tmp_path, capsys, monkeypatch):
    scores = {
        RunKey(order, label, seed): 50.0 + seed * (label == "Word-KD")
        for order in ORDERS
        for label in ("LAMOL", "Word-KD")
        for seed in (1, 2)
    }
    runs_of(tmp_path, scores)
    drawn, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (drawn.append(figure), savefig(figure, *a, **k)))
    options = ["comparisons", "--runs-dir", str(tmp_path), "--keep", str(tmp_path / "none"), "--seeds", "1,2"]
    assert main([*options, "--out", str(tmp_path / "forest.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(" ".join(line.split()[-6:]) == "+1.5 +0.6 to +2.4 4 held" for line in lines), lines
    assert (tmp_path / "forest.png").read_bytes()[:4] == b"\x89PNG"
    (ax,) = drawn[0].axes
    assert ax.get_yticklabels()[0].get_text() == "Word-KD - LAMOL"
    assert list(ax.lines[0].get_ydata()) == [1, 1] and "held, 4 pairs" in [text.get_text() for text in ax.texts]
    assert main([*options, "--csv"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "claim,difference,mean,95% interval,pairs,outcome"


def test_table_4_is_nanos_unless_another_model_is_named(tmp_path, capsys):
    runs_of(tmp_path, {RunKey(HARDEST_FIRST, "LAMOL", seed): 50.0 + seed for seed in (0, 1, 2)})
    where = ["--runs-dir", str(tmp_path), "--keep", str(tmp_path / "none")]
    for model, shown in ([], "51.0 ± 1.0"), (["--model", "nano"], "51.0 ± 1.0"), (["--model", "gpt2"], "–"):
        assert main(["table4", *model, *where]) == 0
        line = next(x for x in capsys.readouterr().out.split("e2e > ")[1].splitlines() if x.startswith("LAMOL"))
        assert line.split("ours")[1].split("  ")[-1].strip() == shown
    assert cells_of("table4", {}, [0])
