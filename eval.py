"""The metrics, a model's answers, and what lifelong learning is measured by.

Table 1 names the metrics: dsEM (WOZ), lfEM (WikiSQL), ROUGE (CNN/DailyMail, NLG), exact match (classification). Every
score is a percentage. A metric is a function of predictions (texts) and examples, and a line in METRICS below. Answers
are decoded greedily (Section 3.1), from a prompt without a task token.

    python eval.py                                              three metrics taken apart
    python eval.py runs/woz+sql+cnn-lamol-word-g0.2-s0          a run's table
    python eval.py --model runs/.../model --task woz            score one model
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from rouge_score import rouge_scorer
from rouge_score.tokenizers import DefaultTokenizer

from data import Example, Task, Tokenizer, encode_prompt
from lab.fast.decode import beam_search, decode
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

AGGREGATES, OPERATORS = ("", "max", "min", "count", "sum", "avg"), ("=", ">", "<")


def common_subsequence(a: str, b: str) -> int:
    """The length of the longest common subsequence. Bit i of `row` is 0 where the table's row steps up at a[i]; one
    addition updates a whole row of the dynamic programme (Hyyrö 2004)."""
    where = {}
    for i, char in enumerate(a):
        where[char] = where.get(char, 0) | 1 << i
    full = row = (1 << len(a)) - 1
    for char in b:
        u = row & where.get(char, 0)
        row = (row + u | row - u) & full
    return len(a) - row.bit_count()


def common_run(name: str, text: str) -> int:
    """The longest run of equal characters that starts in the name no earlier than in the text."""
    best = 0
    for shift in range(len(name)):
        run = 0
        for a, b in zip(name[shift:], text):
            run = run + 1 if a == b else 0
            best = max(best, run)
    return best


def similarity(name: str, text: str) -> float:
    """How much a text is like a column's name: the common subsequence as a share of the longer one. Ties go to the
    longer common run, then to the shorter string. Raises ZeroDivisionError for two empty ones."""
    longer, shorter = max(len(name), len(text)), min(len(name), len(text))
    return common_subsequence(name, text) / longer + common_run(name, text) / 1e4 - shorter / 1e8


def most_similar(names: list[str], texts: list[str]) -> tuple[int, int]:
    """Which name is most like which of the texts; the first of equals."""
    likeness = [similarity(name, text) for name in names for text in texts]
    return divmod(likeness.index(max(likeness)), len(texts))


def parse_sql(text: str, header: list[str]) -> dict:
    """SQL in lower case -> its logical form {sel, agg, conds}, by the rule of the authors' code. Raises ValueError,
    IndexError or ZeroDivisionError for what it can't read.

    Column names may be misspelt: the most similar one is meant, the longest first."""
    columns = sorted(((name.lower(), i) for i, name in enumerate(header)), key=lambda c: len(c[0]), reverse=True)
    names = [name for name, _ in columns]
    selection, where, condition = text.partition("where")
    selection = selection.split()[1:-2]  # without `select` and `from table`, which are not looked at
    column, aggregated = most_similar(names, [" ".join(selection), " ".join(selection[1:])])
    aggregate = AGGREGATES.index(selection[0]) if aggregated else 0
    conditions = parse_conditions(condition, columns, header) if where else []
    return {"sel": columns[column][1], "agg": aggregate, "conds": conditions}


def parse_conditions(text: str, columns: list[tuple[str, int]], header: list[str]) -> list[list]:
    """What stands behind `where` -> [[column, operator, value]]. The text is cut at every operator, and at every `and`
    between two of them. Spaces in values are ignored."""
    operators = re.findall("[=><]", text)
    pieces = [piece.strip() for piece in re.split("[=><]", text)]
    first, *middle, last = pieces if operators else pieces * 2
    pieces = [first, *(part for piece in middle for part in piece.split("and")), last]  # column, value, column, ...
    for i in range(0, len(pieces), 2):
        pieces[i] = columns[most_similar([name for name, _ in columns], [pieces[i]])[0]][0]
    for i, operator in enumerate(operators):
        pieces[2 * i] += " " + operator
    marked = f" {' and '.join(f'{a} {b}' for a, b in zip(pieces[::2], pieces[1::2]))} "
    for name, i in columns:  # upper case marks a column, since the text is in lower case
        marked = marked.replace(f" {name} ", f" COL{i} ")
    conditions = []
    for part in re.split(r"(COL\d+ [=><](?!\S))", " ".join(marked.split())):
        if match := re.fullmatch(r"COL(\d+) ([=><])", part):
            conditions.append([int(match[1]), OPERATORS.index(match[2])])
        elif words := part.split():  # a value; before a condition's column there is none, which raises here
            value = [header[int(w[3:])].lower() if w.startswith("COL") else w for w in words]
            conditions[-1].append("".join(value[:-1] if words[-1] == "and" else value).replace(" ", ""))
    return conditions


def logical_form_scores(predictions: list[str], examples: list[Example]) -> dict[str, float]:
    """lfEM: does a prediction, lower-cased, read as the gold logical form? Conditions must be in its order.

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
        indices += [("column", column, len(header)), ("operator", operator, 4)]  # WikiSQL lists a fourth one, OP
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

    def grams(text):  # how many 1-grams, 2-grams and words
        n = len(words.tokenize(text))
        return {"rouge1": n, "rouge2": max(0, n - 1), "rougeLsum": n}

    totals = dict.fromkeys(("rouge1", "rouge2", "rougeLsum"), 0.0)
    for prediction, example in zip(map(sentences, predictions), examples, strict=True):
        references = [sentences(text) for text in example.meta.get("references", [example.answer])]
        scores = [scorer.score(reference, prediction) for reference in references]
        for kind in totals:  # the pooled F
            weights = [grams(prediction)[kind] + grams(reference)[kind] for reference in references]
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
