"""The metrics against the released code's numbers, and the measures of lifelong learning.

python -m pytest tests/test_eval.py"""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eval as eval_file
from data import Example, Task
from eval import (
    common_run,
    common_subsequence,
    dialogue_state_scores,
    draw_curves,
    exact_match,
    logical_form_matches,
    parse_sql,
    rouge_scores,
    score,
    summarise,
    table,
)

UNREADABLE = (ValueError, IndexError, ZeroDivisionError)


def test_dialogue_state_scores_equal_the_released_ones(golden):
    for case in golden("dsem")["sets"]:
        turns = case["turns"]
        ids, predictions, golds = ([turn[key] for turn in turns] for key in ("dialogue_turn", "pred", "gold"))
        scores = dialogue_state_scores(ids, predictions, golds)
        assert scores == pytest.approx({key: case["expected"][key] for key in scores}), case["name"]


def test_sql_is_read_as_the_released_parser_reads_it(golden):
    n = 0
    for case in golden("lfem")["sets"]:
        for e in case["examples"]:
            try:
                form = parse_sql(e["pred"], e["header"])
            except UNREADABLE:
                form = None
            assert form == e.get("parsed"), e["pred"]
            n += 1
    assert n > 1000


def test_logical_form_matches_equal_the_released_ones_for_lower_case_predictions(golden):
    for case in golden("lfem")["sets"]:
        examples = [e for e in case["examples"] if e["pred"] == e["pred"].lower()]
        arguments = ([e[key] for e in examples] for key in ("pred", "sql", "header"))
        assert logical_form_matches(*arguments) == [e["correct"] for e in examples], case["name"]


def test_case_does_not_count_in_sql():
    sql, header = {"sel": 0, "agg": 3, "conds": [[1, 0, "Ann"]]}, ["Team", "Player"]
    predictions = ["select count team from table where player = ann", "SELECT COUNT Team FROM table WHERE Player = Ann"]
    assert logical_form_matches(predictions, [sql] * 2, [header] * 2) == [True, True]
    assert sql["conds"] == [[1, 0, "Ann"]]  # the gold form is left as it was


def plain_lcs(a, b):
    L = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            L[i + 1][j + 1] = L[i][j] + 1 if x == y else max(L[i][j + 1], L[i + 1][j])
    return L[-1][-1]


@settings(max_examples=300, deadline=None)
@given(st.text("abc ", max_size=15), st.text("abc ", max_size=15))
def test_the_bit_parallel_common_subsequence_is_the_textbook_one(a, b):
    assert common_subsequence(a, b) == plain_lcs(a, b)
    pairs = [(i, j) for i in range(len(b)) for j in range(i, len(a))]  # starts in the text and in the name
    runs = [n for i, j in pairs for n in range(1, min(len(b) - i, len(a) - j) + 1) if a[j : j + n] == b[i : i + n]]
    assert common_run(a, b) == max(runs, default=0)


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=60) | st.text("select where from table and=<> COL1", max_size=60))
def test_a_prediction_can_be_any_string(prediction):
    header = ["a", "select", "", "and", "where is"]
    logical_form_matches([prediction], [{"sel": 0, "agg": 0, "conds": [[1, 0, "x"]]}], [header])
    dialogue_state_scores(["en_0_0"], [prediction], ["food: x;"])
    rouge_scores([prediction], ["a text"])
    rouge_scores(["a text"], [prediction])
    exact_match([prediction], ["x"])


# ---------------------------------------------------------------------- ROUGE


def test_rouge_equals_the_perl_script_up_to_its_tolerance(golden):
    cases = [case for case in golden("rouge")["cases"] if "mechanism" not in case["kind"]]
    assert len(cases) > 90 and sum(len(case["references"]) > 1 for case in cases) > 20
    sums = dict.fromkeys(("rouge1", "rouge2", "rougeL", "rouge"), 0.0)
    for case in cases:
        scores = rouge_scores([case["prediction"]], [case["references"]])
        for wanted in (case, case["no_exceptions"]):
            for key in ("rouge1", "rouge2", "rougeL"):
                assert abs(scores[key] - wanted[key]) <= wanted["tolerance"] + 1e-9, (case["name"], key)
        sums = {key: sums[key] + scores[key] / len(cases) for key in sums}
    wanted = golden("rouge")["average"]["no_exceptions"]
    for key, value in sums.items():
        assert abs(value - wanted[key]) <= wanted["tolerance"], key


def test_several_references_are_pooled_not_maximised():
    one = rouge_scores(["a b c d"], ["a b c d"])["rouge1"]
    other = rouge_scores(["a b c d"], ["x y"])["rouge1"]
    pooled = rouge_scores(["a b c d"], [["a b c d", "x y"]])["rouge1"]
    assert (one, other) == (100.0, 0.0) and pooled == pytest.approx(100 * 8 / 14)  # weights 4 + 4 and 4 + 2


def test_rouge_l_is_the_summary_level_one():
    """Each sentence of the reference is matched on its own: their order does not matter."""
    assert rouge_scores(["b c. a d."], ["a d. b c."])["rougeL"] == pytest.approx(100)


def test_exact_match_strips_and_keeps_case():
    assert exact_match([" World ", "world", "Sports"], ["World", "World", "Sports "]) == pytest.approx(200 / 3)


@pytest.mark.parametrize("metric", ["em", "rouge", "joint_goal_em", "lfem"])
def test_last_test_example_counts(metric):
    meta = {"turn": "en_{}_0", "sql": {"sel": 0, "agg": 0, "conds": []}, "header": ["name", "team"]}
    good, bad = {"joint_goal_em": ("a: b;", "a: c;"), "lfem": ("select name from table", "select team from table")}.get(
        metric, ("one word", "xx")
    )
    metas = [meta | {"turn": f"en_{i}_0"} for i in range(5)]
    task = Task("t", metric, [], [Example("c", "q", good, meta=m) for m in metas])
    scores = [score(task, [good] * 4 + [last])["score"] for last in (good, bad)]
    assert scores == pytest.approx([100, 80])


# ---------------------------------------------------------------------- lifelong learning

R = {0: (10, 20, 30), 1: (80, 25, 40), 2: (50, 90, 45), 3: (60, 70, 95)}
LINES = [{"stage": m, "epoch": 9, "task": t, "score": s} for m, row in R.items() for t, s in zip("abc", row)]


def test_the_four_measures_are_the_ones_of_their_formulas():
    s = summarise("lamol", list("abc"), [{"stage": 1, "epoch": 1, "task": "a", "score": 99}, *LINES])
    assert s["average"] == pytest.approx((60 + 70 + 95) / 3)
    assert s["backward_transfer"] == pytest.approx((60 - 80 + 70 - 90) / 2)
    assert s["forgetting"] == pytest.approx((80 - 60 + 90 - 70) / 2)
    assert s["forward_transfer"] == pytest.approx((25 - 20 + 45 - 30) / 2)
    for line in ("average", "75.0", "-20.0", "after 3 (c)"):
        assert line in table(s)


def test_what_is_no_lifelong_learning_has_no_transfer():
    one = summarise("lamol", ["a"], [line for line in LINES if line["task"] == "a" and line["stage"] < 2])
    lines = [line for line in LINES if (line["stage"], line["task"]) in ((1, "a"), (2, "b"), (3, "c"))]
    single = summarise("single", list("abc"), lines)
    multitask = summarise("multitask", list("abc"), [line for line in LINES if line["stage"] < 2])
    assert [s["average"] for s in (one, single, multitask)] == pytest.approx(
        [80, (80 + 90 + 95) / 3, (80 + 25 + 40) / 3]
    )
    for s in (one, single, multitask):
        assert s["backward_transfer"] is s["forward_transfer"] is s["forgetting"] is None
        assert table(s)


def test_curves_are_drawn(tmp_path):
    draw_curves(list("abc"), 9, LINES, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


# ---------------------------------------------------------------------- the command


def test_a_finished_runs_table_is_printed(tmp_path, capsys):
    summary = summarise("lamol", list("abc"), LINES)
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert eval_file.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == table(summary).strip()


def test_bad_input_is_one_line(tmp_path, capsys):
    assert eval_file.main([str(tmp_path)]) == 1
    assert "no run directory" in capsys.readouterr().err
    for broken in ("{", "{}", "[]", '{"order": 3}'):
        (tmp_path / "summary.json").write_text(broken)
        assert eval_file.main([str(tmp_path)]) == 1
        assert "not a run's summary" in capsys.readouterr().err
    assert eval_file.main(["--model", str(tmp_path / "none"), "--task", "woz"]) == 1
    for arguments in (
        ["x", "--model", "x", "--task", "woz"],
        ["--task", "woz"],
        ["--model", "x"],
        ["--model", "x", "--task", "wozz"],
    ):
        with pytest.raises(SystemExit) as e:
            eval_file.main(arguments)
        assert e.value.code == 2
