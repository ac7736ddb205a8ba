"""python eval.py: a run's table, the scores of a model on a task, or three metrics taken apart."""

from collections import Counter

from rouge_score.tokenizers import DefaultTokenizer

from data import Example, answer_budget
from eval import dialogue_state_scores, parse_state, predict, rouge_scores, score, summarise, table
from lab.errors import Parser, command, expand_paths
from lab.run.device import choose_device
from lab.run.pretrained import load_student
from lab.run.rundir import read_run
from lab.sql import parse_sql
from lab.tasks import TASKS, load_task, task_name
from lab.tasks.ceiling import ceiling, ceiling_line


@command()
def main(argv=None) -> int:
    """The command line. Returns the exit code."""
    parser = build_parser()
    try:
        o = parser.parse_args(argv)
        check(o, parser)
    except SystemExit as e:  # --help or bad usage
        return e.code or 0
    if o.run_dir:
        print(table(read_run(o.run_dir)))
    elif o.model:
        score_model(o)
    else:
        show()
    return 0


def build_parser() -> Parser:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("run_dir", nargs="?", help="a finished run: print its table")
    parser.add_argument("--model", help="a model folder that a run has written: score it on --task")
    parser.add_argument("--task", help=f"{', '.join(TASKS)}, or a folder with train.jsonl and test.jsonl")
    parser.add_argument("--data-dir", default="~/.cache/l2kd/raw", help="raw files (default %(default)s)")
    parser.add_argument("--cache-dir", default="~/.cache/l2kd", help="prepared data (default %(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="first N examples of each split (0: all)")
    parser.add_argument("--multi-reference", action="store_true", help="E2E: score against all references of a meaning")
    parser.add_argument("--device", default="auto", help="auto (CUDA, then CPU), cpu, cuda, mps (default %(default)s)")
    return parser


def check(o, parser) -> None:
    """Exit with 2 and one line for options that don't fit together. Paths may begin with ~."""
    if o.limit < 0:
        parser.error(f"--limit {o.limit}: must be a number of at least 0")
    if (o.run_dir and o.model) or bool(o.model) != bool(o.task):
        parser.error("give either a run directory, or --model and --task, or nothing")
    given = [key for key, value in vars(o).items() if value != parser.get_default(key) and key != "run_dir"]
    if given and not o.model:
        parser.error(f"--{given[0].replace('_', '-')}: only with --model and --task")
    expand_paths(o, parser, "run_dir", "model", "task", "data_dir", "cache_dir")
    if o.task:
        try:
            task_name(o.task)
        except ValueError as e:
            parser.error(f"--task: {e}")


def score_model(o) -> None:
    """All scores of a run's model on a task's test examples, in float32."""
    model, tok, config = load_student(o.model)
    task = load_task(o.task, o.data_dir, o.cache_dir, o.limit, o.multi_reference)
    max_len = config.get("max_len", model.config.n_positions)
    budget = config.get("answer_budgets", {}).get(task.name) or answer_budget(task, tok, max_len)
    device, _, _ = choose_device(o.device)
    answers = predict(model.to(device), tok, task.test, max_len, budget)
    for name, value in score(task, [tok.decode(ids) for ids in answers]).items():
        print(f"{name:<16} {value:6.2f}")
    if line := ceiling_line(task, ceiling(task, o.cache_dir)):
        print(f"note: {line}")


def show() -> None:
    """What three of the metrics see in a prediction, and the measures of lifelong learning in a small run."""
    show_dialogue()
    show_sql()
    show_rouge()
    rows = [(0, 10, 0), (1, 90, 20), (2, 60, 80)]
    rows = [{"stage": i, "task": task, "score": x} for i, *r in rows for task, x in zip(("woz", "sql"), r)]
    print("\nA run of two tasks, R[i][j] the score on task j after stage i\n")
    print("    " + table(summarise("lamol", ["woz", "sql"], rows)).replace("\n", "\n    "))


def show_dialogue() -> None:
    print("joint goal (dsEM): the slots of all turns so far must agree; requests don't count\n")
    predictions = ["area: north; phone", "food: thai;", "price: cheap; phone"]
    golds = ["area: north;", "food: thai, price: cheap;", "; phone"]
    state, gold_state = {}, {}
    print(f"    {'prediction':<22}{'gold':<28}{'state':<40}{'gold state':<40}")
    for prediction, gold in zip(predictions, golds):
        state |= parse_state(prediction)[0]
        gold_state |= parse_state(gold)[0]
        texts = [", ".join(f"{slot}: {value}" for slot, value in s.items()) for s in (state, gold_state)]
        verdict = "equal" if state == gold_state else "not"
        print(f"    {prediction:<22}{gold:<28}{texts[0]:<40}{texts[1]:<40}{verdict}")
    examples = [Example("", "", gold, meta={"turn": f"en_0_{t}"}) for t, gold in enumerate(golds)]
    scores = dialogue_state_scores(predictions, examples)
    print("    " + ", ".join(f"{name} {value:.1f}" for name, value in scores.items()))


def show_sql() -> None:
    header = ["Player", "Home team", "Points"]
    print(f"\nlfEM: the text is read as a logical form, columns {', '.join(header)}; the most similar name is meant.")
    print("sel: the column, agg: none max min count sum avg, conds: [column, = > <, value], all counted from 0\n")
    gold = "select player from table where home team = maine road and points > 20"
    misspelt = "SELECT playr FROM table WHERE hom team = MAINE ROAD AND points > 20"
    swapped = "select player from table where points > 20 and home team = maine road"
    for text in (gold, misspelt, swapped):
        form = parse_sql(text.lower(), header)
        note = "" if form == parse_sql(gold, header) else "    another order: wrong"
        print(f"    {text}\n        {form}{note}")


def show_rouge() -> None:
    prediction, gold = "the party hit madrid. olga spoke.", "a party hit madrid. people were speaking. olga left."
    print(f"\nROUGE (F, stemmed): {prediction!r} against {gold!r}\n")
    words = [DefaultTokenizer(use_stemmer=True).tokenize(text) for text in (prediction, gold)]
    for n in (1, 2):
        ours, theirs = (Counter(zip(*(text[i:] for i in range(n)))) for text in words)
        shared, a, b = ours & theirs, ours.total(), theirs.total()
        grams = ", ".join(" ".join(gram) for gram in shared)
        print(f"    {n}-grams: {a} and {b}, {shared.total()} in both ({grams}): {200 * shared.total() / (a + b):.1f}")
    scores = rouge_scores([prediction], [Example("", "", gold)])
    print("    " + ", ".join(f"{name} {value:.1f}" for name, value in scores.items()), end=" ")
    print("(the mean; L: longest common subsequences, sentence by sentence)")
