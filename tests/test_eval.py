"""The metrics against the authors' numbers, answers, and the measures of lifelong learning.

python -m pytest tests/test_eval.py"""

import pytest
from conftest import nano
from hypothesis import given, settings
from hypothesis import strategies as st

import eval as eval_file
from data import Example, Task, encode_prompt
from eval import (
    METRICS,
    dialogue_state_scores,
    exact_match,
    final_scores,
    logical_form_scores,
    parse_state,
    predict,
    rouge_scores,
    score,
    summarise,
    table,
)
from lab.fast.decode import beam_search, decode
from lab.sql import common_run, common_subsequence, parse_sql

UNREADABLE = (ValueError, IndexError, ZeroDivisionError)


def of(answer, **meta):
    return Example("", "", answer, meta=meta)


# ---------------------------------------------------------------------- exact match and dsEM


def test_exact_match_strips_and_keeps_case():
    golds = [of("World"), of("World"), of("Sports ")]
    assert exact_match([" World ", "world", "Sports"], golds)["em"] == pytest.approx(200 / 3)


def test_dialogue_state_scores_equal_the_authors(golden):
    for case in golden("dsem")["sets"]:
        examples = [of(turn["gold"], turn=turn["dialogue_turn"]) for turn in case["turns"]]
        predictions = [turn["pred"] for turn in case["turns"]]
        scores = dialogue_state_scores(predictions, examples)
        assert scores == pytest.approx({key: case["expected"][key] for key in scores}), case["name"]
        for i, pair in enumerate(zip(predictions, examples)):  # these two scores look at a turn alone
            one = dialogue_state_scores(*([x] for x in pair))
            for kind in ("request", "goal"):
                assert one[f"turn_{kind}_em"] == 100 * case["per_turn_ok"][kind][i], case["name"]


def test_a_dialogue_keeps_its_state_until_the_next_one_begins():
    golds = [of(gold, turn=turn) for turn, gold in (("a_1_0", "x: 1;"), ("a_1_1", "y: 2;"), ("a_2_0", "y: 2;"))]
    assert dialogue_state_scores(["x: 1;", "y: 2;", "y: 2;"], golds)["joint_goal_em"] == 100
    assert dialogue_state_scores(["x: 0;", "y: 2;", "y: 2;"], golds)["joint_goal_em"] == pytest.approx(100 / 3)
    golds[2] = of("y: 2;", turn="b_1_0")  # the same number in another language is another dialogue
    assert dialogue_state_scores(["x: 0;", "y: 2;", "y: 2;"], golds)["joint_goal_em"] == pytest.approx(100 / 3)
    assert parse_state(" a: 1 , b ; phone, area ") == ({"a": "1"}, ["phone", "area"])
    assert parse_state("None") == parse_state("a: 1") == parse_state(";") == ({}, None) != parse_state("a: 1;")


# ---------------------------------------------------------------------- lfEM


def test_sql_is_read_as_the_authors_parser_reads_it(golden):
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


def test_logical_form_scores_equal_the_authors_for_lower_case_predictions(golden):
    for case in golden("lfem")["sets"]:
        examples = [e for e in case["examples"] if e["pred"] == e["pred"].lower()]
        predictions, golds = [e["pred"] for e in examples], [of("", sql=e["sql"], header=e["header"]) for e in examples]
        for prediction, gold, e in zip(predictions, golds, examples):
            assert logical_form_scores([prediction], [gold])["lfem"] == 100 * e["correct"], e["pred"]
        if len(examples) == len(case["examples"]):
            assert logical_form_scores(predictions, golds)["lfem"] == pytest.approx(case["lfem"]), case["name"]


def test_case_does_not_count_in_sql_and_the_gold_form_is_left_as_it_was():
    sql = {"sel": 0, "agg": 3, "conds": [[1, 0, "Ann"]]}
    gold = of("", sql=sql, header=["Team", "Player"])
    text = "select count team from table where player = ann"
    assert logical_form_scores([text, "SELECT COUNT Team FROM table WHERE Player = Ann"], [gold] * 2)["lfem"] == 100
    assert logical_form_scores([text.replace("count ", "")], [gold])["lfem"] == 0
    assert sql == {"sel": 0, "agg": 3, "conds": [[1, 0, "Ann"]]}


def plain_lcs(a, b):
    L = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            L[i + 1][j + 1] = L[i][j] + 1 if x == y else max(L[i][j + 1], L[i + 1][j])
    return L[-1][-1]


@settings(max_examples=200, deadline=None)
@given(st.text("abc ", max_size=15), st.text("abc ", max_size=15))
def test_the_bit_parallel_common_subsequence_is_the_textbooks(a, b):
    assert common_subsequence(a, b) == plain_lcs(a, b)
    pairs = [(i, j) for i in range(len(b)) for j in range(i, len(a))]  # starts in the text and in the name
    runs = [n for i, j in pairs for n in range(1, min(len(b) - i, len(a) - j) + 1) if a[j : j + n] == b[i : i + n]]
    assert common_run(a, b) == max(runs, default=0)


# ---------------------------------------------------------------------- ROUGE


def test_rouge_equals_the_perl_script_up_to_its_tolerance(golden):
    cases = [case for case in golden("rouge")["cases"] if "mechanism" not in case["kind"]]
    assert len(cases) > 90 and sum(len(case["references"]) > 1 for case in cases) > 20
    sums = dict.fromkeys(("rouge1", "rouge2", "rougeL", "rouge"), 0.0)
    for case in cases:
        scores = rouge_scores([case["prediction"]], [of("", references=case["references"])])
        for wanted in (case, case["no_exceptions"]):
            for key in ("rouge1", "rouge2", "rougeL"):
                assert abs(scores[key] - wanted[key]) <= wanted["tolerance"] + 1e-9, (case["name"], key)
        sums = {key: sums[key] + scores[key] / len(cases) for key in sums}
    wanted = golden("rouge")["average"]["no_exceptions"]
    for key, value in sums.items():
        assert abs(value - wanted[key]) <= wanted["tolerance"], key
    golds = [of("", references=case["references"]) for case in cases]
    assert rouge_scores([case["prediction"] for case in cases], golds) == pytest.approx(sums)  # a mean over examples


def test_several_references_are_pooled_and_the_best_one_is_not_taken():
    one = rouge_scores(["a b c d"], [of("a b c d")])["rouge1"]
    other = rouge_scores(["a b c d"], [of("x y")])["rouge1"]
    pooled = rouge_scores(["a b c d"], [of("a b c d", references=["a b c d", "x y"])])["rouge1"]
    assert (one, other) == (100.0, 0.0) and pooled == pytest.approx(100 * 8 / 14)  # weights 4 + 4 and 4 + 2


def test_rouge_l_is_the_summary_level_one():
    """Each sentence of the reference is matched on its own, so their order does not matter."""
    assert rouge_scores(["b c. a d."], [of("a d. b c.")])["rougeL"] == pytest.approx(100)


# ---------------------------------------------------------------------- the table of metrics

SQL = {"sel": 0, "agg": 3, "conds": [[1, 0, "x"]]}
GOLDS = {  # an answer, another one, and what the metric needs of the example besides
    "em": ("one word", "xx", {}),
    "rouge": ("one word", "xx", {}),
    "joint_goal_em": ("a: b;", "a: c;", {"turn": "en_{}_0"}),
    "lfem": (
        "select count name from table where team = x",
        "select name from table",
        {"sql": SQL, "header": ["name", "team"]},
    ),
}


def examples_of(metric, n):
    """n examples that the metric can score, each a dialogue of its own."""
    good, _, meta = GOLDS[metric]
    return [of(good, **{k: v.format(i) if isinstance(v, str) else v for k, v in meta.items()}) for i in range(n)]


@pytest.mark.parametrize("metric", METRICS)
def test_gold_answers_score_100_and_the_last_test_example_counts(metric):
    """`score` is the metric's own number among the others."""
    good, bad, _ = GOLDS[metric]
    task = Task("t", metric, [], examples_of(metric, 5))
    for example in task.test:
        METRICS[metric].check(example.meta)
    for last, wanted in ((good, 100), (bad, 80)):
        scores = score(task, [good] * 4 + [last])
        assert scores["score"] == scores[metric] == pytest.approx(wanted)
        assert all(0 <= value <= 100 for value in scores.values())
    scores = score(task, [good, "word one", "", "", ""])  # of these ROUGE-1 is not ROUGE
    assert scores["score"] == scores[metric] < 100
    with pytest.raises(ValueError):
        score(task, [good] * 4)  # an answer is missing
    assert set(score(Task("t", metric, [], []), []).values()) == {0.0}


@pytest.mark.parametrize(
    "metric, change, error",
    [
        ("joint_goal_em", {"turn": None}, "KeyError"),
        ("joint_goal_em", {"turn": 3}, "'turn' must be a text"),
        ("rouge", {"references": "text"}, "'references' must be a list of texts"),
        ("rouge", {"references": []}, "'references' must be a list of texts"),
        ("rouge", {"references": ["a", 3]}, "'references' must be a list of texts"),
        ("lfem", {"header": None}, "KeyError"),
        ("lfem", {"sql": None}, "KeyError"),
        ("lfem", {"sql": 3}, "TypeError"),
        ("lfem", {"header": "name"}, "'header' must be a list of texts"),
        ("lfem", {"header": ["name", 3]}, "'header' must be a list of texts"),
        ("lfem", {"sql": SQL | {"sel": 2}}, "column 2 is no index from 0 to 1"),
        ("lfem", {"sql": SQL | {"sel": -1}}, "column -1 is no index"),
        ("lfem", {"sql": SQL | {"sel": True}}, "column True is no index"),
        ("lfem", {"sql": SQL | {"agg": 6}}, "agg 6 is no index from 0 to 5"),
        ("lfem", {"sql": SQL | {"agg": "max"}}, "agg 'max' is no index"),
        ("lfem", {"sql": SQL | {"conds": [[2, 0, "x"]]}}, "column 2 is no index"),
        ("lfem", {"sql": SQL | {"conds": [[1, 9, "x"]]}}, "operator 9 is no index"),
        ("lfem", {"sql": SQL | {"conds": [[1, 0]]}}, "ValueError"),
        ("lfem", {"sql": SQL | {"conds": 3}}, "TypeError"),
    ],
)
def test_an_example_that_lacks_what_its_metric_needs_is_refused(metric, change, error):
    """None stands for a key that is missing. A KeyError or TypeError has no words of its own."""
    meta = {key: value for key, value in (GOLDS[metric][2] | change).items() if value is not None}
    with pytest.raises((KeyError, TypeError, ValueError)) as e:
        METRICS[metric].check(meta)
    assert error in f"{type(e.value).__name__}: {e.value}"


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text("select where from table and=<> COL1", max_size=60))
def test_a_prediction_can_be_any_string(prediction):
    for metric in METRICS:
        assert 0 <= METRICS[metric].score([prediction], examples_of(metric, 1))[metric] <= 100
    header = ["a", "select", "", "and", "where is"]
    logical_form_scores([prediction], [of("", sql=SQL, header=header)])
    rouge_scores(["a text", "", prediction], [of(prediction), of(""), of("")])


# ---------------------------------------------------------------------- a model's answers


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_decoded_from_prompts_within_the_budget(tok, monkeypatch, beams):
    """Greedy, or by beam search; from `c q ANS` without a task token; EOS is kept where it comes."""
    asked = []
    monkeypatch.setattr(eval_file, "decode", lambda *a: asked.append("decode") or decode(*a))
    monkeypatch.setattr(eval_file, "beam_search", lambda *a: asked.append(("beams", a[-1])) or beam_search(*a))
    model, examples = nano(), [Example("the mill is a pub", "what is the mill?", ""), Example("", "who?", "")]
    answers = predict(model, tok, examples, 64, 6, beams)
    assert asked == (["decode"] if beams == 1 else [("beams", 3)])
    assert all(1 <= len(ids) <= 6 and tok.eos_id not in ids[:-1] for ids in answers)
    if beams == 1:
        for example, ids in zip(examples, answers):
            prompt = encode_prompt(example.context, example.question, tok, 64, 6)
            assert decode(model, [prompt], [6], tok.eos_id, lambda z, rows, t: z.argmax(dim=-1)) == [ids]


# ---------------------------------------------------------------------- lifelong learning

R = {0: (10, 20, 30), 1: (80, 25, 40), 2: (50, 90, 45), 3: (60, 70, 95)}
LINES = [{"stage": m, "epoch": 9, "task": t, "score": s} for m, row in R.items() for t, s in zip("abc", row)]


def test_the_four_measures_are_those_of_their_formulas():
    earlier_epoch = {"stage": 1, "epoch": 1, "task": "a", "score": 99}  # the last epoch of a stage stands
    s = summarise("lamol", list("abc"), [earlier_epoch, *LINES])
    assert s["average"] == pytest.approx((60 + 70 + 95) / 3)
    assert s["backward_transfer"] == pytest.approx((60 - 80 + 70 - 90) / 2)
    assert s["forgetting"] == pytest.approx((80 - 60 + 90 - 70) / 2)
    assert s["forward_transfer"] == pytest.approx((25 - 20 + 45 - 30) / 2)
    assert s["scores"] == {m: dict(zip("abc", row)) for m, row in R.items()} and s["order"] == list("abc")


def test_forgetting_counts_from_the_best_stage_even_before_a_task_is_learned():
    lines = [line | {"score": 97} if (line["stage"], line["task"]) == (0, "b") else line for line in LINES]
    assert summarise("lamol", list("abc"), lines)["forgetting"] == pytest.approx((80 - 60 + 97 - 70) / 2)


def test_a_continued_run_has_the_measures_that_it_can_have():
    """After two tasks it was continued by c and d, on which stage 1 was not scored."""
    lines = [line for line in LINES if (line["stage"], line["task"]) != (1, "c")]
    rows = {0: {"d": 5}, 2: {"d": 15}, 3: {"d": 25}, 4: {"a": 40, "b": 50, "c": 85, "d": 99}}
    lines += [{"stage": m, "epoch": 9, "task": t, "score": s} for m, row in rows.items() for t, s in row.items()]
    s = summarise("lamol", list("abcd"), lines)
    assert s["forgetting"] == pytest.approx((80 - 40 + 90 - 50 + 95 - 85) / 3)
    assert s["forward_transfer"] == pytest.approx((25 - 20 + 45 - 30 + 25 - 5) / 3)


def test_what_is_no_lifelong_learning_has_no_transfer():
    one = summarise("lamol", ["a"], [line for line in LINES if line["task"] == "a" and line["stage"] < 2])
    lines = [line for line in LINES if (line["stage"], line["task"]) in ((1, "a"), (2, "b"), (3, "c"))]
    single = summarise("single", list("abc"), lines)
    multitask = summarise("multitask", list("abc"), [line for line in LINES if line["stage"] < 2])
    averages = [80, (80 + 90 + 95) / 3, (80 + 25 + 40) / 3]
    assert [s["average"] for s in (one, single, multitask)] == pytest.approx(averages)
    assert final_scores("single", list("abc"), single["scores"]) == {"a": 80, "b": 90, "c": 95}
    for s in (one, single, multitask):
        assert s["backward_transfer"] is s["forward_transfer"] is s["forgetting"] is None
        assert "transfer" not in table(s) and "average" in table(s)


def test_the_table_has_a_row_a_stage_and_the_measures():
    summary = summarise("lamol", list("abc"), LINES)
    lines = table(summary).splitlines()
    assert lines[0].split() == ["a", "b", "c"]
    assert lines[1].split() == ["before", "10.0", "20.0", "30.0"]
    assert lines[4].split() == ["after", "3", "(c)", "60.0", "70.0", "95.0"]
    assert [line.split()[-1] for line in lines[5:]] == ["75.0", "-20.0", "10.0", "20.0"]
    read = summary | {"scores": {str(m): row for m, row in summary["scores"].items()}}  # as summary.json has it
    assert table(read) == table(summary)
    single = summarise("single", list("ab"), [LINES[0], LINES[1], LINES[3], LINES[7]])
    assert table(single).splitlines()[2].split() == ["after", "1", "(a)", "80.0", "–"]
    assert "after all" in table(summarise("multitask", list("abc"), LINES[:6]))
