"""The metrics, a model's answers, and what lifelong learning is measured by.

Table 1 names the metrics: dsEM (WOZ), lfEM (WikiSQL), ROUGE (CNN/DailyMail, NLG), exact match (classification). Every
score is a percentage. A metric is a function of predictions (texts) and examples, and a line in METRICS below. Answers
are decoded greedily (Section 3.1), from a prompt without a task token.

    python eval.py                                               three metrics taken apart
    python eval.py runs/toy.woz+toy.sql+toy.cnn-lamol-word-g0.2-s0       a run's table
    python eval.py --model runs/.../model --task toy.woz         score one model
"""

from collections.abc import Callable
from typing import NamedTuple

from rouge_score import rouge_scorer
from rouge_score.tokenizers import DefaultTokenizer

from data import Example, Task, Tokenizer, encode_prompt
from lab.fast.decode import beam_search, decode
from lab.sql import AGGREGATES, OPERATORS, parse_sql
from model import GPT

# ---------------------------------------------------------------------- exact match


def exact_match(predictions: list[str], examples: list[Example]) -> dict[str, float]:
    """The share of predictions that equal their answer, both stripped. Case counts."""
    hits = [p.strip() == e.answer.strip() for p, e in zip(predictions, examples, strict=True)]
    return {"em": percent(hits)}


def percent(values) -> float:
    return 100 * sum(values) / max(1, len(values))  # 0 of nothing


# ---------------------------------------------------------------------- WOZ: dialogue-state exact match (dsEM)


def parse_state(line: str) -> tuple[dict, list | None]:
    """`slot: value, slot: value; request, request` -> (informed slots, requests); ({}, None) for none or no parse."""
    parts = line.strip().split(";")
    if line.strip() == ";" or len(parts) != 2:
        return {}, None
    items = [item.split(":") for item in parts[0].split(",")]
    informed = {item[0].strip(): item[1].strip() for item in items if len(item) == 2}
    return informed, [request.strip() for request in parts[1].split(",")]


def dialogue_state_scores(predictions: list[str], examples: list[Example]) -> dict[str, float]:
    """dsEM of turns in dialogue order. An example's meta has `turn`: `<language>_<dialogue>_<turn>`.

    joint_goal_em      all slots informed since the dialogue began agree (decaNLP's score, the one reported)
    turn_request_em    the requests of this turn agree, in order
    turn_goal_em       the slots informed in this turn agree"""
    joint, request, goal, dialogue = [], [], [], None
    for prediction, example in zip(predictions, examples, strict=True):
        *this_dialogue, _ = example.meta["turn"].split("_")
        if this_dialogue != dialogue:
            dialogue, state, gold_state = this_dialogue, {}, {}
        informed, requests = parse_state(prediction)
        gold_informed, gold_requests = parse_state(example.answer)
        state |= informed
        gold_state |= gold_informed
        joint.append(state == gold_state)
        request.append(requests == gold_requests)
        goal.append(informed == gold_informed)
    return {"joint_goal_em": percent(joint), "turn_request_em": percent(request), "turn_goal_em": percent(goal)}


def check_turn(meta: dict) -> None:
    if not isinstance(meta["turn"], str):
        raise ValueError("'turn' must be a text")


# ---------------------------------------------------------------------- WikiSQL: logical-form exact match (lfEM)


def logical_form_scores(predictions: list[str], examples: list[Example]) -> dict[str, float]:
    """lfEM: does a prediction, lower-cased, read as the gold logical form? Conditions must be in its order. How SQL is
    read is the authors' rule, `lab.sql.parse_sql`.

    An example's meta has `sql`, {sel, agg, conds: [[column, operator, value]]}, and the `header` it points into."""
    matches = []
    for prediction, example in zip(predictions, examples, strict=True):
        sql, header = example.meta["sql"], example.meta["header"]
        conds = [[column, operator, str(value).lower().replace(" ", "")] for column, operator, value in sql["conds"]]
        try:
            form = parse_sql(prediction.lower(), header)
        except (ValueError, IndexError, ZeroDivisionError):
            form = None
        matches.append(form == {"sel": sql["sel"], "agg": sql["agg"], "conds": conds})
    return {"lfem": percent(matches)}


def check_sql(meta: dict) -> None:
    header, sql = meta["header"], meta["sql"]
    if not isinstance(header, list) or not all(isinstance(name, str) for name in header):
        raise ValueError("'header' must be a list of texts")
    indices = [("column", sql["sel"], len(header)), ("agg", sql["agg"], len(AGGREGATES))]
    for column, operator, _ in sql["conds"]:
        indices += [("column", column, len(header)), ("operator", operator, len(OPERATORS))]
    for what, i, n in indices:
        if type(i) is not int or not 0 <= i < n:
            raise ValueError(f"{what} {i!r} is no index from 0 to {n - 1}")


# ---------------------------------------------------------------------- summaries and sentences: ROUGE


def rouge_scores(predictions: list[str], examples: list[Example]) -> dict[str, float]:
    """ROUGE-1, -2 and summary-level -L (F, stemmed), and their mean `rouge`, averaged over examples.

    The reference is the answer. An example's meta may have several, `references`, which are pooled as the Perl script
    does it: the mean of their F, weighted with the n-grams of prediction + reference. Sentences end at every '.'."""
    words = DefaultTokenizer(use_stemmer=True)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeLsum"], tokenizer=words)

    def sentences(text):
        return "\n".join(" ".join(sentence.split()) for sentence in text.split("."))

    totals = dict.fromkeys(("rouge1", "rouge2", "rougeLsum"), 0.0)
    for prediction, example in zip(map(sentences, predictions), examples, strict=True):
        references = [sentences(text) for text in example.meta.get("references", [example.answer])]
        scores = [scorer.score(reference, prediction) for reference in references]
        lengths = [len(words.tokenize(text)) for text in (prediction, *references)]
        for kind in totals:  # the pooled F
            n, *others = [max(0, length - 1) if kind == "rouge2" else length for length in lengths]  # n-grams
            weights = [n + other for other in others]
            pooled = sum(w * s[kind].fmeasure for w, s in zip(weights, scores))
            totals[kind] += pooled / sum(weights) if sum(weights) else 0.0
    r1, r2, rl = (100 * total / max(1, len(predictions)) for total in totals.values())
    return {"rouge1": r1, "rouge2": r2, "rougeL": rl, "rouge": (r1 + r2 + rl) / 3}


def check_references(meta: dict) -> None:
    references = meta.get("references", [""])
    if not isinstance(references, list) or not references or not all(isinstance(text, str) for text in references):
        raise ValueError("'references' must be a list of texts")


# ---------------------------------------------------------------------- the table of metrics


class Metric(NamedTuple):
    """score(predictions, examples) gives named percentages, the metric's own name among them. check(meta) raises
    KeyError, TypeError or ValueError where a test example lacks what the metric needs."""

    score: Callable[[list[str], list[Example]], dict[str, float]]
    check: Callable[[dict], None]


METRICS = {
    "em": Metric(exact_match, lambda meta: None),
    "rouge": Metric(rouge_scores, check_references),
    "lfem": Metric(logical_form_scores, check_sql),
    "joint_goal_em": Metric(dialogue_state_scores, check_turn),
}


def score(task: Task, predictions: list[str]) -> dict[str, float]:
    """All scores of a task's test predictions. `score` is the one that counts."""
    scores = METRICS[task.metric].score(predictions, task.test)
    return {"score": scores[task.metric], **scores}


# ---------------------------------------------------------------------- a model's answers


def greedy(logits, rows, t):
    """The `pick` of `decode`: the likeliest token. logits (b, V) -> (b,)."""
    return logits.max(dim=-1).indices  # like argmax the first of equals, in less time


def predict(model: GPT, tokenizer: Tokenizer, examples, max_len: int, budget: int, beams: int = 1) -> list[list[int]]:
    """Greedy answers to examples, or those of a beam search, as ids of at most `budget`, EOS included where it came."""
    prompts = [encode_prompt(e.context, e.question, tokenizer, max_len, budget) for e in examples]
    limits = [budget] * len(prompts)
    if beams > 1:
        return beam_search(model, prompts, limits, tokenizer.eos_id, beams)
    return decode(model, prompts, limits, tokenizer.eos_id, greedy)


# ---------------------------------------------------------------------- a run: R[i][j], the score on j after stage i


def summarise(method: str, order: list[str], rows: list[dict]) -> dict:
    """The lines of scores.jsonl -> the scores and the four measures of lifelong learning.

    With R[i][j] the score on task j after stage i of n, and R[0] before any:
        average            mean_j R[n][j]                               of `single`, `multitask` all others are None
        backward transfer  mean_{j<n} R[n][j] − R[j][j]                 below 0: forgotten since it was learned
        forgetting         mean_{j<n} max_{i<n} R[i][j] − R[n][j]
        forward transfer   mean_{j>1} R[j−1][j] − R[0][j]               above 0: better before its first example
    """
    R = {}
    for row in rows:  # the last epoch of a stage stands
        R.setdefault(row["stage"], {})[row["task"]] = row["score"]
    n = max(R)

    def r(i, j):  # R[i][j], tasks counted from 1
        return R[i][order[j - 1]]

    def best(j):  # before a run was continued, its stages were not scored on the new tasks
        return max(r(i, j) for i in range(n) if order[j - 1] in R[i])

    earlier = () if method in ("single", "multitask") else range(1, n)  # these have no earlier tasks
    return {
        "order": order,
        "method": method,
        "scores": R,
        "average": mean([final_scores(method, order, R)[task] for task in order]),
        "backward_transfer": mean([r(n, j) - r(j, j) for j in earlier]),
        "forgetting": mean([best(j) - r(n, j) for j in earlier]),
        "forward_transfer": mean([r(j, j + 1) - r(0, j + 1) for j in earlier]),
    }


def final_scores(method: str, order: list[str], R: dict[int, dict]) -> dict[str, float]:
    """Task -> its score in the end: after the last stage, or its own model's with `single`."""
    if method == "single":
        return {task: R[m][task] for m, task in enumerate(order, 1)}
    return R[max(R)]


def mean(values):
    return sum(values) / len(values) if values else None


def table(summary: dict) -> str:
    """A summary as text: one row a stage, one column a task, then the measures."""
    order = summary["order"]
    width = max(8, *(len(task) + 2 for task in order))
    stages = {0: "before"} | {m: f"after {m} ({task})" for m, task in enumerate(order, 1)}
    if summary["method"] == "multitask":
        stages[1] = "after all"
    lines = [f"{'':<24}" + "".join(f"{task:>{width}}" for task in order)]
    for m, row in summary["scores"].items():
        cells = "".join(f"{row[task]:>{width}.1f}" if task in row else f"{'–':>{width}}" for task in order)
        lines.append(f"{stages[int(m)]:<24}{cells}")
    for name in ("average", "backward_transfer", "forward_transfer", "forgetting"):
        if summary[name] is not None:
            lines.append(f"{name.replace('_', ' '):<24}{summary[name]:>{width}.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    import sys

    from lab.show.eval import main

    sys.exit(main())
