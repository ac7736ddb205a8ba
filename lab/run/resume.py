"""--resume and --continue: where a run goes on."""

from contextlib import contextmanager
from pathlib import Path

from eval import summarise
from lab.errors import RunError
from lab.files import read_json, write_jsonl
from lab.run.checkpoint import kept_of, last_checkpoint, weights_of
from lab.run.options import LIFELONG, differences
from lab.run.pretrained import load_gpt
from lab.run.ranks import is_main_process
from lab.run.rundir import read_scores


def resume(run, config: dict) -> dict | None:
    """--resume: find out where an earlier try was cut off, and restore its logs and `kept`.

    config: that of this try. Returns what is to be config.json now, None if it stays. Raises RunError if the earlier
    try had other options or data."""
    path = run.dir / "config.json"
    if not any(run.dir.glob("[!l]*")):  # but for the lock and an empty log
        print(f"resume   {run.dir}: nothing was written yet; from the beginning")
        return config
    if not path.exists():
        raise RunError(f"{path} is missing, so the options of this run are not known; delete its directory")
    wrong, rounding = differences(path, config)
    if wrong:
        raise RunError(f"{run.dir} was made with other options or data: {', '.join(wrong)} (see its config.json)")
    if run.finished:
        return None
    if rounding:
        masks = {"micro_batch", "compile", "resolved_device", "ranks"} & set(rounding)
        what = "rounding and dropout masks" if masks else "rounding"
        print(f"WARNING: {', '.join(rounding)} differ from the earlier try: equal up to {what} only")
    run.cut_off, run.stage_end = last_checkpoint(run.dir, run.args.method in LIFELONG, largest_checkpoint(run))
    if not run.cut_off:
        print(f"resume   {run.dir}: there is no checkpoint to go on from; from the beginning")
        return config
    state, tensors = run.cut_off
    if state["stages"] > len(run.tasks):
        what = f"is of {state['stages']} stages, this run has {len(run.tasks)} tasks"
        raise RunError(f"{run.dir}/checkpoint {what}")
    run.stages_done, run.last_saved, run.began = state["stages"], state["said"], run.began - state["seconds"]
    run.teacher_times, run.made_here = state["teacher_times"], state["made_here"]
    run.kept = kept_of(state, tensors, run.device)
    print(f"resume   {run.dir}: {run.last_saved}")
    run.earlier = read_json(path, dict)
    if not rounding:
        return None
    before = run.earlier.get("resumed_with", [])
    changes = [*(before if isinstance(before, list) else []), {key: config[key] for key in rounding}]
    return run.earlier | {"resumed_with": changes}


def largest_checkpoint(run) -> int:
    """The most bytes of a checkpoint: weights, two moments, four models a task that hooks may keep, logs."""
    largest = max(sum(p.nbytes for p in model.parameters()) for model in (run.pretrained, run.teacher_start))
    return (4 + 4 * len(run.tasks)) * largest + 2**29


@contextmanager
def fitting_checkpoint(run):
    """Raises RunError if a checkpoint holds another model than this run's."""
    try:
        yield
    except (RuntimeError, KeyError, TypeError, ValueError) as e:
        raise RunError(f"{run.dir}/checkpoint does not fit this run ({str(e).splitlines()[0]})") from None


def first_student(run):
    """The student that this try begins with: as the last stage of an earlier try left it, or that of the run that is
    continued, else the pretrained model (Section 3.1)."""
    model = run.pretrained_copy()
    if run.stage_end:
        with fitting_checkpoint(run):
            model.load_state_dict(weights_of(run.stage_end[1]))
        run.stage_end = None
    elif run.args.continue_:
        take_over(run, model)
    return model.eval()


def take_over(run, model) -> None:
    """--continue: weights and scores of the parent's last stage. Its new tasks are scored as if they had been there."""
    parent, n = Path(run.args.continue_).expanduser(), len(run.parent["tasks"])
    rows = read_scores(parent)
    try:
        if max(row["stage"] for row in rows) != n:
            raise ValueError("its last stage is not there")
        summarise("lamol", run.parent["tasks"], rows)
    except (KeyError, ValueError) as e:
        raise RunError(f"--continue {parent}: its scores.jsonl is not that of a finished run ({e})") from None
    if is_main_process():
        write_jsonl(run.dir / "scores.jsonl", rows)
    run.score(model, run.tasks[n:], 0, 0, once=True)
    student = load_gpt(parent / "model")
    if student.config != model.config:
        raise RunError(f"--continue {parent}: its student has another shape than --model {run.args.model}")
    model.load_state_dict(student.state_dict())
    run.score(model, run.tasks[n:], n, run.parent["epochs"], once=True)
    run.stages_done = n
    run.checkpoint({"phase": "", "stage": n, "name": f"of {parent.resolve().name}"}, model)
