"""Fetch and prepare all that a run, or each run of a table, needs. After that they need no network.

    python -m lab.prefetch --order woz,sql,cnn --kd word       the options of train.py
    python -m lab.prefetch table3 --model gpt2-medium          a table or figure of lab.paper, and options for its runs

That is the model with its vocabulary, and of each task the raw files, prepared. What is there already is not fetched
again. Everything lies in --data-dir, --cache-dir and the cache of huggingface_hub (HF_HOME); so the runs need the same.
"""

import sys

from lab.errors import LabError, RunError, command
from lab.paper.__main__ import parse_arguments
from lab.paper.experiments import keys_of
from lab.paper.runs import arguments
from lab.run.options import Options, model_reason, no_teacher, parse
from lab.run.pretrained import tokenizer_of, weight_files
from lab.tasks import load_task


def wanted(argv: list[str]) -> list[Options]:
    """The options of all runs that a command line means. Exits with 2 and one line for bad usage."""
    if not argv or argv[0].startswith("-"):
        return [parse(argv)]
    o, extra = parse_arguments(argv)
    return [parse(arguments(key, extra)) for key in keys_of(o.what, o.seeds)]


def models_of(o: Options) -> dict[tuple, str]:
    """(model, cache folder) -> the reason for it."""
    models = {(o.model, o.cache_dir): model_reason(o)}
    return models if no_teacher(o) else {(o.teacher_model, o.cache_dir): "--teacher-model"} | models


def fetch_model(source: str, cache_dir: str, why: str) -> str:
    """Fetch a model. Returns what there is of it. Raises LabError."""
    tokenizer_of(source)  # its vocabulary, before its weights
    return f"{source}: {', '.join(map(str, weight_files(source, cache_dir, why)))}"


def fetch_task(entry: str, data_dir: str, cache_dir: str, limit: int, multi_reference: bool) -> str:
    """Fetch and prepare a task. Returns what there is of it. Raises LabError."""
    task = load_task(entry, data_dir, cache_dir, limit, multi_reference)
    return f"{task.name}: {len(task.train)} / {len(task.test)} examples"


@command(": the next try goes on from there")
def main(argv=None) -> None:
    """The command line. Its exit code is 1 if something can't be had; the rest is fetched all the same."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return
    failed = 0
    runs = wanted(argv)
    jobs = {(fetch_model, *key, why): None for o in runs for key, why in models_of(o).items()}
    for o in runs:
        for entry in o.order.split(","):
            jobs[fetch_task, entry, o.data_dir, o.cache_dir, o.limit, o.multi_reference] = None
    for do, *args in jobs:
        try:
            print(do(*args), flush=True)
        except (LabError, OSError) as e:
            print(f"error: {e}", file=sys.stderr)
            failed += 1
    if failed:
        raise RunError(f"{failed} of {len(jobs)} could not be had; the next try fetches only these")
    print("all is there; with HF_HUB_OFFLINE=1 the runs do not try the network")


if __name__ == "__main__":
    sys.exit(main())
