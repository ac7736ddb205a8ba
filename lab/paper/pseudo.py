"""How right pseudo-data are: the answers of accepted pseudo-samples, beside those of their task's teacher.

    python -m lab.paper.pseudo runs/nano/*lamol*-s?     a line for each method and replayed task, seeds together

No data say what the right answer to an invented question is. The teacher of the task, of the same seed, is the best
judge at hand: `equal` is the share of accepted samples with its very answer, `rouge` the ROUGE of their answers with
the teacher's. The runs must still have their folders, and the teachers theirs.
"""

import re
from pathlib import Path

from data import Example, Tokenizer
from eval import METRICS, greedy
from lab.errors import DataError, Parser, command, expand_paths
from lab.fast.decode import decode
from lab.files import read_json, read_jsonl, write_json
from lab.paper.runs import stages_of
from lab.paper.tables import markdown_of
from lab.run.pretrained import load_student
from lab.run.rundir import read_run
from lamol import parse_pseudo


def teacher_of(task: str, run: Path, config: dict) -> Path:
    """The model of a task's teacher with the seed, epochs and data of a run; of several, which differ by other options,
    the first by name. Raises DataError if there is none."""
    wanted = {"task": task, "slot": config["slots"][task], "seed": config["seed"], "epochs": config["epochs"]}
    wanted |= {"examples": config["data"][task]}
    for file in sorted(Path(config["teachers"]).expanduser().glob(f"{task}-*/config.json")):
        if wanted.items() <= read_json(file, dict).items():
            return file.parent / "model"
    hint = "a run with --kd, or --method single, of this seed trains it"
    raise DataError(f"{run}: {config['teachers']} has no teacher of {task} with seed {config['seed']}; {hint}")


def answers(samples: list[tuple], model, tokenizer: Tokenizer, budget: int) -> tuple[list[str], list[str]]:
    """Pseudo-samples (ids of the question, ids of the answer) -> their own answers, and the model's greedy ones to the
    same questions, of at most `budget` tokens."""
    questions, own = zip(*samples)
    prompts = [[*ids, tokenizer.ans_id] for ids in questions]
    found = decode(model, prompts, [budget] * len(prompts), tokenizer.eos_id, greedy)
    return [tokenizer.decode(ids) for ids in own], [tokenizer.decode(ids) for ids in found]


def judge(run: Path) -> dict[str, tuple]:
    """Task -> (samples drawn, their own answers, the teacher's), the answers of accepted samples. Raises DataError."""
    read_run(run)  # has it finished?
    config, judged = read_json(run / "config.json", dict), {}
    if lacking := {"slots", "seed", "epochs", "data", "teachers"} - config.keys():
        raise DataError(f"{run / 'config.json'}: lacks {min(lacking)}: not that of a run of this version")
    files = [file for folder in stages_of(run) if (file := folder / "pseudo.jsonl").exists()]
    if not files:
        raise DataError(f"{run}: no pseudo.jsonl in it: nothing was replayed, or it is a copy without its folders")
    lines = [line for file in files for line in read_jsonl(file, task=str, rejected=str, ids=list)]
    for task in dict.fromkeys(line["task"] for line in lines):
        drawn = [line for line in lines if line["task"] == task]
        model, tokenizer, of_model = load_student(teacher_of(task, run, config))
        parts = [parse_pseudo(line["ids"], tokenizer) for line in drawn if not line["rejected"]]
        kept = [both for both in parts if both]  # without real samples (--replay real) that have no answer
        both = answers(kept, model, tokenizer, of_model["answer_budgets"][task]) if kept else ([], [])
        judged[task] = (len(drawn), *both)
    return judged


def line_of(name: str, task: str, runs: list[tuple]) -> dict:
    """What the runs that differ by their seed say of one task."""
    own, teachers = ([answer for run in runs for answer in run[i]] for i in (1, 2))
    drawn = sum(run[0] for run in runs)
    line = {"run": name, "task": task, "runs": len(runs), "drawn": drawn, "accepted": len(own)}
    if own:
        gold = [Example("", "", answer) for answer in teachers]
        for column, metric in (("equal", "em"), ("rouge", "rouge")):
            line[column] = round(METRICS[metric].score(own, gold)[metric], 1)
    return line


@command()
def main(argv=None) -> None:
    """The command line. Its exit code is 1 for a run that can't be read."""
    parser = Parser("python -m lab.paper.pseudo", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", help="directories of runs that replay")
    parser.add_argument("--json", help="a file for the lines")
    o = parser.parse_args(argv)
    expand_paths(o, parser, "json")
    groups = {}
    for run in map(Path, o.runs):
        tasks = judge(run)
        name = re.sub(rf"-s{read_json(run / 'config.json', dict)['seed']}(?=-|$)", "", run.name)
        for task, judged in tasks.items():
            groups.setdefault((name, task), []).append(judged)
    lines = [line_of(*place, runs) for place, runs in groups.items()]
    columns = ("run", "task", "runs", "drawn", "accepted", "equal", "rouge")
    print(markdown_of([columns, *(tuple(str(line.get(column, "–")) for column in columns) for line in lines)]))
    if o.json:
        write_json(Path(o.json), lines)


if __name__ == "__main__":
    raise SystemExit(main())
