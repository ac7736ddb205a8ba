"""Each file shows its work on a page, and its numbers are right. python -m pytest tests/test_pages.py"""

import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import train
from eval import summarise
from lab.run.rundir import read_scores
from lab.show import data, kd, model
from lab.show.eval import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def page():
    """page(file) -> what `python file` prints, checked to fit on a lecturer's screen."""

    def shown(file):
        done = subprocess.run([sys.executable, file], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        lines = done.stdout.splitlines()
        assert 20 <= len(lines) <= 50 and max(map(len, lines)) <= 150
        return done.stdout

    return shown


def test_data_shows_both_rows_of_an_example(page):
    said = page("data.py")
    rows = [re.split(r"\s{2,}", line.strip()) for line in said.splitlines() if re.match(r"\d+\s{2}", line)]
    assert rows[0][1] == "TASK" and rows[-1][2] == rows[-1][4] == "EOS"
    ans = next(i for i, row in enumerate(rows) if row[1] == "ANS")
    assert all(row[4] == "-" for row in rows[1:ans])  # the QA row supervises the answer alone ...
    assert [row[4] for row in rows[ans:]] == [row[2] for row in rows[ans:]]  # ... and there as the LM row does
    assert [row[2] for row in rows[:-1]] == [row[1] for row in rows[1:]]  # an LM label is the next input


def test_kd_shows_that_kl_and_cross_entropy_share_a_gradient(page):
    said = page("kd.py")
    a, b, c = map(float, re.search(r"(\d\.\d+) = (\d\.\d+) \+ (\d\.\d+)", said).groups())
    assert a == pytest.approx(b + c, abs=2e-4) and re.search(r"differ by [0-9]e-0[89]|differ by 0e\+00", said)
    for line in said.splitlines():  # a gradient in the logits sums to zero
        if line.startswith(("NLL of the", "Word-KD, temperature")):
            assert sum(map(float, line.split()[-4:])) == pytest.approx(0, abs=3e-3)
    trained, plain = re.search(r"(\S+) by kd.group_loss, (\S+) from all logits", said).groups()
    assert trained == plain and float(trained) > 1
    difference, most = re.search(r"head's gradients differ by (\S+), of at most (\S+)", said).groups()
    assert float(difference) < 1e-5 < 1e-2 < float(most)


def test_model_shows_causality_the_cache_and_packing(page):
    said = page("model.py")
    assert "by 0.0 before it" in said and "without a cache the same" in said
    assert float(re.search(r"differ by (\S+)", said)[1]) < 1e-4


def test_eval_takes_metrics_apart(page):
    said = page("eval.py")
    assert "joint_goal_em 66.7" in said and said.count("  equal") == 2
    forms = re.findall(r"\{'sel'.*\}", said)
    assert len(forms) == 3 and forms[0] == forms[1] != forms[2]
    one, two = re.search(r"1-grams: .*: (\S+)", said)[1], re.search(r"2-grams: .*: (\S+)", said)[1]
    assert f"rouge1 {one}, rouge2 {two}" in said  # counted by hand as the library counts


def test_lamol_generates_samples_and_says_why_others_are_rejected(page):
    said = page("lamol.py")
    accepted = int(re.search(r"(\d+) accepted", said)[1])
    assert accepted >= 10 and "TASK name" in said and " ANS " in said
    assert said.count("    accepted  context and question") == min(3, accepted)


@pytest.mark.parametrize(
    "show", [data.show, kd.show, model.show, lambda: main([])], ids=["data", "kd", "model", "eval"]
)
def test_a_terminal_without_greek_and_a_notebook_show_the_page(show):
    terminal, notebook = io.TextIOWrapper(io.BytesIO(), encoding="ascii"), io.StringIO()
    for out in (terminal, notebook):
        with redirect_stdout(out):
            show()
    terminal.flush()
    assert len(terminal.buffer.getvalue().decode().splitlines()) == len(notebook.getvalue().splitlines()) >= 20


# ---------------------------------------------------------------------- the command line of eval.py


def test_a_finished_runs_table_is_printed(tmp_path, capsys):
    rows = [{"stage": i, "task": "a", "score": x} for i, x in enumerate((1.0, 50.0))]
    (tmp_path / "summary.json").write_text(json.dumps(summarise("lamol", ["a"], rows)), encoding="utf-8")
    assert main([str(tmp_path)]) == 0
    assert "after 1 (a)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--model", "x"], 2, "--model and --task"),
        (["--limit", "-1"], 2, "--limit -1"),
        (["--device", "cpu"], 2, "--device: only with --model and --task"),
        (["--model", "x", "--task", "nothing"], 2, "--task: unknown task 'nothing'"),
        (["nowhere"], 1, "no run directory"),
        (["~/nowhere"], 1, str(Path("~/nowhere").expanduser())),
        (["--model", "nowhere", "--task", "toy.ag"], 1, "config.json is missing"),
        (["--model", str(ROOT / "lab" / "assets" / "nano"), "--task", "toy.ag"], 1, "no model of a run"),
    ],
)
def test_bad_input_of_eval_is_one_line(arguments, code, said, capsys):
    assert main(arguments) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]


def test_eval_scores_a_runs_model_as_the_run_did(lab, capsys):
    assert train.main([*lab, "--method", "finetune"]) == 0
    (run,) = Path(lab[5]).glob("colors+*")
    (wanted,) = [x["score"] for x in read_scores(run) if (x["stage"], x["task"]) == (2, "sizes")]
    capsys.readouterr()
    assert main(["--model", str(run / "model"), "--task", lab[1].split(",")[1], "--device", "cpu"]) == 0
    assert f"{'em':<16} {wanted:6.2f}" in capsys.readouterr().out
