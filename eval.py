"""The metrics, scoring a model on tasks, and what lifelong learning is measured by.

Table 1 names the metrics: dsEM (WOZ), lfEM (WikiSQL), ROUGE (CNN/DailyMail, NLG), exact match (classification). Every
score is a percentage. Answers are decoded greedily (Section 3.1), from a prompt without a task token.

    python eval.py                                              three metrics taken apart
    python eval.py runs/woz+sql+cnn-lamol-word-g0.2-s0          a run's table
    python eval.py --model runs/.../model --task woz            score one model
"""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

from rouge_score import rouge_scorer
from rouge_score.tokenizers import DefaultTokenizer

from data import METRICS, DataError, Task, Tokenizer, answer_budget, encode_prompt, load_task, task_name
from model import GPT, ModelFileError, beam_search, generate

# ---------------------------------------------------------------------- WOZ: dialogue-state exact match (dsEM)


def parse_state(line: str) -> tuple[dict, list | None]:
    """`slot: value, slot: value; request, request` -> (informed slots, requests); ({}, None) for none or no parse."""
    parts = line.strip().split(";")
    if line.lower() == "none" or line.strip() in ("", ";") or len(parts) != 2:
        return {}, None
    items = [item.split(":") for item in parts[0].split(",")]
    informed = {item[0].strip(): item[1].strip() for item in items if len(item) == 2}
    return informed, [request.strip() for request in parts[1].split(",")]


def dialogue_state_scores(turn_ids, predictions, golds) -> dict[str, float]:
    """dsEM of turns in dialogue order. turn_ids: `<language>_<dialogue>_<turn>`; predictions, golds: answer texts.

    joint_goal_em: all slots informed since the dialogue began agree (decaNLP's score, the one reported);
    turn_request_em, turn_goal_em: this turn's requests (in order), this turn's slots. Percentages."""
    joint = request = goal = 0
    dialogue = None
    for turn, prediction, gold in zip(turn_ids, predictions, golds, strict=True):
        if turn.split("_")[:-1] != dialogue:
            dialogue, state, gold_state = turn.split("_")[:-1], {}, {}
        (informed, requests), (gold_informed, gold_requests) = parse_state(prediction), parse_state(gold)
        state |= informed
        gold_state |= gold_informed
        joint += state == gold_state
        request += requests == gold_requests
        goal += informed == gold_informed
    n = max(1, len(turn_ids)) / 100
    return {"joint_goal_em": joint / n, "turn_request_em": request / n, "turn_goal_em": goal / n}


# ---------------------------------------------------------------------- WikiSQL: logical-form exact match (lfEM)

AGGREGATES, OPERATORS = ("", "max", "min", "count", "sum", "avg"), ("=", ">", "<")


def common_subsequence(a: str, b: str) -> int:
    """Length of the longest common subsequence. Bit i of `row` is 0 where the table's row steps up at a[i]; a whole
    row of the dynamic programme is updated by one addition (Hyyrö 2004)."""
    where = {}
    for i, char in enumerate(a):
        where[char] = where.get(char, 0) | 1 << i
    full = row = (1 << len(a)) - 1
    for char in b:
        u = row & where.get(char, 0)
        row = (row + u | row - u) & full
    return len(a) - row.bit_count()


def common_run(name: str, text: str) -> int:
    """Longest run of equal characters that starts in the name no earlier than in the text (as released)."""
    best = 0
    for shift in range(len(name)):
        run = 0
        for a, b in zip(name[shift:], text):
            run = run + 1 if a == b else 0
            best = max(best, run)
    return best


def similarity(name: str, text: str) -> float:
    """How much a text is like a column's name (as released): the common subsequence as a share of the longer one; ties
    go to the longer common run, then to the shorter string. Raises ZeroDivisionError for two empty ones."""
    longer, shorter = max(len(name), len(text)), min(len(name), len(text))
    return common_subsequence(name, text) / longer + common_run(name, text) / 1e4 - shorter / 1e8


def parse_sql(text: str, header: list[str]) -> dict:
    """SQL text, lower case -> logical form {sel, agg, conds}, by the released rule. Raises for what it can't read.

    Column names may be misspelt: the most similar one is meant, the longest first. Conditions are cut at every
    operator, and at every `and` between two of them; spaces in values don't count."""
    columns = sorted(((name.lower(), i) for i, name in enumerate(header)), key=lambda c: len(c[0]), reverse=True)
    selection, where, condition = text.partition("where")
    selection = selection.split()[1:-2]  # without `select` and `from table`, which are not looked at
    whole, rest = " ".join(selection), " ".join(selection[1:])
    likeness = [similarity(name, t) for name, _ in columns for t in (whole, rest)]
    best = likeness.index(max(likeness))
    form = {"sel": columns[best // 2][1], "agg": AGGREGATES.index(selection[0]) if best % 2 else 0, "conds": []}
    if not where:
        return form
    operators = re.findall("[=><]", condition)
    pieces = [piece.strip() for piece in re.split("[=><]", condition)]
    first, *middle, last = pieces if operators else pieces * 2
    pieces = [first, *(part for piece in middle for part in piece.split("and")), last]  # column, value, column, ...
    for i in range(0, len(pieces), 2):
        likeness = [similarity(name, pieces[i]) for name, _ in columns]
        pieces[i] = columns[likeness.index(max(likeness))][0]
    for i, operator in enumerate(operators):
        pieces[2 * i] += " " + operator
    marked = f" {' and '.join(f'{a} {b}' for a, b in zip(pieces[::2], pieces[1::2]))} "
    for name, i in columns:  # upper case marks a column: the text is in lower case
        marked = marked.replace(f" {name} ", f" COL{i} ")
    for part in re.split(r"(COL\d+ [=><](?!\S))", " ".join(marked.split())):
        if match := re.fullmatch(r"COL(\d+) ([=><])", part):
            form["conds"].append([int(match[1]), OPERATORS.index(match[2])])
        elif words := part.split():  # a value: before a condition's column there is none, which raises here
            value = [header[int(w[3:])].lower() if w.startswith("COL") else w for w in words]
            form["conds"][-1].append("".join(value[:-1] if words[-1] == "and" else value).replace(" ", ""))
    return form


def logical_form_matches(predictions, sqls, headers) -> list[bool]:
    """lfEM of each prediction: does its text, lower-cased, read as the gold logical form? Never raises.

    sqls: {sel, agg, conds: [[column, operator, value]]}, indices into header, AGGREGATES and OPERATORS."""
    matches = []
    for prediction, sql, header in zip(predictions, sqls, headers, strict=True):
        conds = [[c, op, str(value).lower().replace(" ", "")] for c, op, value in sql["conds"]]
        try:
            form = parse_sql(prediction.lower(), header)
        except (ValueError, IndexError, ZeroDivisionError):
            form = None
        matches.append(form == {"sel": sql["sel"], "agg": sql["agg"], "conds": conds})
    return matches


# ---------------------------------------------------------------------- ROUGE and exact match


def rouge_scores(predictions, references) -> dict[str, float]:
    """ROUGE-1, -2 and summary-level -L (F, stemmed), and their mean `rouge`; averaged over examples, percentages.

    A reference is a string, or a list of strings that are pooled as the Perl script does: the mean of their F, weighted
    with the n-grams of prediction + reference. Sentences end at every '.'."""
    words = DefaultTokenizer(use_stemmer=True)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeLsum"], tokenizer=words)

    def sentences(text):
        return "\n".join(" ".join(sentence.split()) for sentence in text.split("."))

    def grams(text):  # how many 1-, 2-grams and words
        n = len(words.tokenize(text))
        return {"rouge1": n, "rouge2": max(0, n - 1), "rougeLsum": n}

    totals = dict.fromkeys(("rouge1", "rouge2", "rougeLsum"), 0.0)
    for prediction, golds in zip(predictions, references, strict=True):
        golds = [sentences(gold) for gold in ([golds] if isinstance(golds, str) else golds)]
        prediction = sentences(prediction)
        scores = [scorer.score(gold, prediction) for gold in golds]
        weights = [grams(gold) for gold in golds]
        own = grams(prediction)
        for kind in totals:
            weight = [own[kind] + w[kind] for w in weights]
            pooled = sum(w * s[kind].fmeasure for w, s in zip(weight, scores))
            totals[kind] += pooled / sum(weight) if sum(weight) else 0.0
    n = max(1, len(predictions)) / 100
    r1, r2, rl = (total / n for total in totals.values())
    return {"rouge1": r1, "rouge2": r2, "rougeL": rl, "rouge": (r1 + r2 + rl) / 3}


def exact_match(predictions, answers) -> float:
    """Percentage of predictions that equal their answer, both stripped, case kept."""
    hits = [p.strip() == a.strip() for p, a in zip(predictions, answers, strict=True)]
    return 100 * sum(hits) / max(1, len(hits))


# ---------------------------------------------------------------------- scoring a model


def score(task: Task, predictions: list[str], multi_reference: bool = False) -> dict[str, float]:
    """Every metric of a task on its test examples; `score` is the one that counts.

    multi_reference: a meaning representation with several references (E2E) counts once, against all of them."""
    answers = [example.answer for example in task.test]
    metas = [example.meta for example in task.test]
    if task.metric == "joint_goal_em":
        scores = dialogue_state_scores([meta["turn"] for meta in metas], predictions, answers)
    elif task.metric == "lfem":
        matches = logical_form_matches(predictions, [m["sql"] for m in metas], [m["header"] for m in metas])
        scores = {"lfem": 100 * sum(matches) / max(1, len(matches))}
    elif task.metric == "rouge":
        pairs = list(zip(predictions, answers, strict=True))
        if multi_reference:
            keys = [(e.context, e.question) if "references" in e.meta else i for i, e in enumerate(task.test)]
            golds = [e.meta.get("references", e.answer) for e in task.test]
            pairs = list(dict(zip(keys, zip(predictions, golds))).values())
        scores = rouge_scores(*zip(*pairs))
    else:
        scores = {"em": exact_match(predictions, answers)}
    return {"score": scores[task.metric], **scores}


def predict(model: GPT, tokenizer: Tokenizer, examples, max_len: int, budget: int, beams: int = 1) -> list[list[int]]:
    """Greedy answers to examples, or those of a beam search, as ids, EOS included where it was reached."""
    prompts = [encode_prompt(e.context, e.question, tokenizer, max_len, budget) for e in examples]
    if beams > 1:
        return beam_search(model, prompts, budget, tokenizer.eos_id, beams)
    return generate(model, prompts, budget, tokenizer.eos_id)


def load_model(folder: str) -> tuple[GPT, Tokenizer, dict]:
    """A model folder that a run has written -> the model, its tokenizer with the tasks' slots, its config.json.

    Raises ModelFileError, DataError."""
    model = GPT.from_pretrained(folder)
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.of(folder)
    slots, budgets = config.get("task_slots"), config.get("answer_budgets", {})
    if model.config.vocab_size != tokenizer.n_vocab:
        raise ModelFileError(f"{folder}: no model of a run: {model.config.vocab_size} tokens, not {tokenizer.n_vocab}")
    if not isinstance(slots, dict) or not all(map(tokenizer.is_task, slots.values())):
        raise ModelFileError(f"{folder}/config.json: no model of a run: it has no task_slots with a token a task")
    most = model.config.n_positions
    numbers = [config.get("max_len", most), *(budgets.values() if isinstance(budgets, dict) else [0])]
    if any(type(n) is not int or not 0 < n <= most for n in numbers):
        raise ModelFileError(f"{folder}/config.json: max_len and answer_budgets must be numbers from 1 to {most}")
    tokenizer.slots |= slots
    return model, tokenizer, config


# ---------------------------------------------------------------------- a run: R[i][j], the score on j after stage i


def summarise(method: str, order: list[str], rows: list[dict]) -> dict:
    """The lines of scores.jsonl -> scores and the four measures of lifelong learning (None where they make no sense).

    With R[i][j] the score on task j after stage i of T, and R[0] before any:
        average            mean_j R[T][j]
        backward transfer  mean_{j<T} R[T][j] − R[j][j]                 below 0: forgotten since learned
        forgetting         mean_{j<T} max_{i<T} R[i][j] − R[T][j]
        forward transfer   mean_{j>1} R[j−1][j] − R[0][j]               above 0: better before its first example
    """
    R = {}
    for row in rows:  # the last epoch of a stage stands
        R.setdefault(row["stage"], {})[row["task"]] = row["score"]
    T, last = max(R), final_scores(method, order, R)

    def r(i, j):  # R[i][j], tasks counted from 1
        return R[i][order[j - 1]]

    def best(j):  # a stage before a run was continued was not scored on tasks that came then
        return max(R[i][order[j - 1]] for i in range(T) if order[j - 1] in R[i])

    earlier = range(1, T) if method in ("finetune", "lamol") else ()  # the other methods have no earlier tasks
    return {
        "order": order,
        "method": method,
        "scores": R,
        "average": mean([last[task] for task in order]),
        "backward_transfer": mean([r(T, j) - r(j, j) for j in earlier]),
        "forgetting": mean([best(j) - r(T, j) for j in earlier]),
        "forward_transfer": mean([r(j, j + 1) - r(0, j + 1) for j in earlier]),
    }


def final_scores(method: str, order: list[str], R: dict[int, dict]) -> dict[str, float]:
    """Task -> its score in the end: after the last stage, or with `single`, whose models are independent, its own."""
    if method == "single":
        return {task: R[m][task] for m, task in enumerate(order, 1)}
    return R[max(R)]


def mean(values):
    return sum(values) / len(values) if values else None


def table(summary: dict) -> str:
    """A summary as text: one row a stage, one column a task."""
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


def draw_curves(order: list[str], epochs: int, rows: list[dict], path: str) -> None:
    """Figure 3 of one run: a panel a task, its score over the epochs of all stages; dashed lines part the stages."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(len(order), 1, figsize=(7, 1.2 + 1.7 * len(order)), sharex=True, squeeze=False)
    last = max(row["stage"] for row in rows)
    ends = [0]  # the epochs until the end of each stage; those of a run that was continued may be longer or shorter
    for stage in range(1, last + 1):
        ends.append(ends[-1] + max((row["epoch"] for row in rows if row["stage"] == stage), default=epochs))
    for task, ax in zip(order, axes[:, 0]):
        points = sorted((ends[max(0, x["stage"] - 1)] + x["epoch"], x["score"]) for x in rows if x["task"] == task)
        ax.plot(*zip(*points), marker="o", markersize=3, color="0.25")
        for end in ends[1:-1]:
            ax.axvline(end, linestyle="--", linewidth=0.8, color="0.5")
        ax.set(ylim=(-3, 103), ylabel=f"{task}, %")
        ax.grid(alpha=0.3)
    if last == len(order):
        for stage, task in enumerate(order):
            middle = (ends[stage] + ends[stage + 1]) / 2 / ends[-1]
            axes[0, 0].text(middle, 1.04, f"learns {task}", transform=axes[0, 0].transAxes, ha="center", fontsize=9)
    axes[-1, 0].set(xlabel="epochs", xlim=(0, ends[-1]))
    fig.tight_layout()
    fig.savefig(path, dpi=130, format="png")
    plt.close(fig)


def read_run(folder: str) -> dict:
    """A run directory -> its summary. Raises DataError where it is none, or not finished."""
    path = Path(folder) / "summary.json"
    try:
        if not path.is_file():
            raise FileNotFoundError
        summary = json.loads(path.read_text(encoding="utf-8"))
        table(summary)
    except OSError:
        raise DataError(f"{path}: not there; {folder!r} is no run directory, or its run has not finished") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise DataError(f"{path}: not a run's summary ({e!r})") from None
    return summary


def show() -> None:
    """What three of the metrics see in a prediction, and the measures of lifelong learning in a small run."""
    print("joint goal (dsEM): the slots of all turns so far must agree; requests don't count\n")
    turns = [
        ("area: north; phone", "area: north;"),  # (prediction, gold)
        ("food: thai;", "food: thai, price: cheap;"),
        ("price: cheap; phone", "; phone"),
    ]
    state, gold_state = {}, {}
    print(f"    {'prediction':<22}{'gold':<28}{'state':<40}{'gold state':<40}")
    for prediction, gold in turns:
        state, gold_state = state | parse_state(prediction)[0], gold_state | parse_state(gold)[0]
        said = [", ".join(f"{slot}: {value}" for slot, value in s.items()) for s in (state, gold_state)]
        print(f"    {prediction:<22}{gold:<28}{said[0]:<40}{said[1]:<40}{'equal' if state == gold_state else 'not'}")
    scores = dialogue_state_scores([f"en_0_{i}" for i in range(3)], *zip(*turns))
    print("    " + ", ".join(f"{name} {value:.1f}" for name, value in scores.items()))

    header = ["Player", "Home team", "Points"]
    print(f"\nlfEM: the text is read as a logical form, columns {', '.join(header)}; the most similar name is meant.")
    print("sel: the column, agg: none max min count sum avg, conds: [column, = > <, value], all counted from 0\n")
    gold = "select player from table where home team = maine road and points > 20"
    for text in (
        gold,
        "SELECT playr FROM table WHERE hom team = MAINE ROAD AND points > 20",
        "select player from table where points > 20 and home team = maine road",
    ):
        form = parse_sql(text.lower(), header)
        print(f"    {text}\n        {form}{'' if form == parse_sql(gold, header) else '    another order: wrong'}")

    prediction, gold = "the party hit madrid. olga spoke.", "a party hit madrid. people were speaking. olga left."
    print(f"\nROUGE (F, stemmed): {prediction!r} against {gold!r}\n")
    words = [DefaultTokenizer(use_stemmer=True).tokenize(text) for text in (prediction, gold)]
    for n in (1, 2):
        grams = [Counter(zip(*(text[i:] for i in range(n)))) for text in words]
        shared, (a, b) = (grams[0] & grams[1]), (grams[0].total(), grams[1].total())
        said = ", ".join(" ".join(gram) for gram in shared)
        print(f"    {n}-grams: {a} and {b}, {shared.total()} in both ({said}): {200 * shared.total() / (a + b):.1f}")
    print("    " + ", ".join(f"{k} {v:.1f}" for k, v in rouge_scores([prediction], [gold]).items()), end=" ")
    print("(the mean; L: longest common subsequences, sentence by sentence)")

    rows = [(0, 10, 0), (1, 90, 20), (2, 60, 80)]
    rows = [{"stage": i, "task": task, "score": x} for i, *r in rows for task, x in zip(("woz", "sql"), r)]
    print("\nA run of two tasks, R[i][j] the score on task j after stage i\n")
    print("    " + table(summarise("lamol", ["woz", "sql"], rows)).replace("\n", "\n    "))


def main(argv=None) -> int:
    """The command line: the table of a run, or the scores of a model. Returns the exit code."""
    from lab.options import choose_device
    from lab.rundir import RunError

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"error: {message} (--help lists the options)\n")  # one line
    parser.add_argument("run_dir", nargs="?", help="a finished run: print its table")
    parser.add_argument("--model", help="a model folder that a run has written: score it on --task")
    parser.add_argument("--task", help=f"{', '.join(METRICS)}, or a folder with train.jsonl and test.jsonl")
    parser.add_argument("--data-dir", default="~/.cache/l2kd/raw", help="raw files (default %(default)s)")
    parser.add_argument("--cache-dir", default="~/.cache/l2kd", help="prepared data (default %(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="first N examples of each split (0: all)")
    parser.add_argument("--multi-reference", action="store_true", help="E2E: score against all references of a meaning")
    parser.add_argument("--device", default="auto", help="auto (CUDA, then CPU), cpu, cuda, mps (default %(default)s)")
    options = parser.parse_args(argv)
    if options.limit < 0:
        parser.error(f"--limit {options.limit}: must be a number of at least 0")
    if (options.run_dir and options.model) or bool(options.model) != bool(options.task):
        parser.error("give either a run directory, or --model and --task, or nothing")
    given = [key for key, value in vars(options).items() if value != parser.get_default(key) and key != "run_dir"]
    if given and not options.model:
        parser.error(f"--{given[0].replace('_', '-')}: only with --model and --task")
    try:
        if not options.run_dir and not options.model:
            show()
            return 0
        if options.run_dir:
            print(table(read_run(options.run_dir)))
            return 0
        try:
            task_name(options.task)
        except ValueError as e:
            parser.error(f"--task: {e}")
        model, tokenizer, config = load_model(options.model)
        task = load_task(options.task, options.data_dir, options.cache_dir, options.limit)
        max_len = config.get("max_len", model.config.n_positions)
        budget = config.get("answer_budgets", {}).get(task.name) or answer_budget(task, tokenizer, max_len)
        device, _, _ = choose_device(options.device)
        answers = predict(model.to(device), tokenizer, task.test, max_len, budget)
        texts = [tokenizer.decode(ids) for ids in answers]
        for name, value in score(task, texts, options.multi_reference).items():
            print(f"{name:<16} {value:6.2f}")
        return 0
    except (DataError, ModelFileError, RunError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
