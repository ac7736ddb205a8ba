"""The teachers' folder: a teacher is trained once, saved, and found again by every run that needs the same one.

<teachers>/<task>-<hash of all that it depends on>/
    model/  predictions.jsonl  scores.jsonl  config.json
"""

import hashlib
import time
from pathlib import Path

from lab.errors import RunError
from lab.files import key_of, read_json, short_name, write_folder, write_json, write_jsonl
from lab.run.encoding import hash_of_examples
from lab.run.options import options_of, teacher_options
from lab.run.pretrained import load_gpt
from lab.run.progress import Phase
from lab.run.ranks import broadcast, is_main_process, world_size
from lab.run.rundir import one_at_a_time
from model import GPT

VERSION = 2  # of how a teacher learns: one of another version is not found


def hash_of_model(model: GPT) -> str:
    """A hash of a model's shape and weights."""
    digest = hashlib.sha256(repr(model.config).encode())
    for p in model.parameters():
        digest.update(p.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def teacher_key(run, task, epochs: int) -> dict:
    """All that a teacher depends on. At --resume it is what the first try was given, though this one may have another
    --micro-batch, for example."""
    earlier = run.earlier
    first = options_of(earlier, run.dir / "config.json") if earlier else run.args
    key = {"version": VERSION, "task": task.name, "slot": run.slots[task.name], "epochs": epochs}
    key |= {"examples": hash_of_examples(task), "max_len": run.max_len, "dtype": str(run.dtype)}
    key |= {"starts_from": run.hash_of_teacher} | teacher_options(first)
    processes = earlier.get("ranks", 1) if earlier else world_size()
    return key | ({"ranks": processes} if processes != 1 else {})  # their dropout masks are other ones


def saved_teacher(run, task, train) -> GPT:
    """The teacher of a task: loaded, or trained by train(phase), scored and saved."""
    # row (7) of Table 3 has the teachers of `single`, however long multitask learning takes
    epochs = min(run.args.epochs, 9) if run.args.method == "multitask" else run.args.epochs
    key = teacher_key(run, task, epochs)
    folder = Path(run.args.teachers).expanduser() / f"{short_name(task.name, 200)}-{key_of(key)}"
    if not broadcast(folder.is_dir()):
        with one_at_a_time(folder) as waited:
            run.began += waited
            if not broadcast(folder.is_dir()):
                return make_teacher(run, task, train, folder, key)
    print(f"teacher  of {task.name}: found in {folder}")
    return load_teacher(run, task, folder)


def make_teacher(run, task, train, folder: Path, key: dict) -> GPT:
    """Train a teacher, evaluate it and save it."""
    model = train(Phase("teacher", 0, task.name, key["epochs"]))
    seconds = round(time.time() - run.phase_began, 1)
    run.teacher_times[task.name] = run.made_here[task.name] = seconds
    scores, predictions = run.evaluate(model, task, 0, key["epochs"])

    def fill(temporary):
        run.write_model(model, temporary / "model")
        write_jsonl(temporary / "predictions.jsonl", predictions)
        write_jsonl(temporary / "scores.jsonl", [scores])
        write_json(temporary / "config.json", key | {"seconds": seconds})

    if is_main_process():
        write_folder(folder, fill)
    print(f"teacher  of {task.name}: {scores['score']:.1f}, saved in {folder}")
    return model


def load_teacher(run, task, folder: Path) -> GPT:
    """A teacher that was saved. Raises RunError if the folder is incomplete, or of another model."""
    try:
        seconds = read_json(folder / "config.json", dict).get("seconds")
        teacher = load_gpt(folder / "model")
        if teacher.config != run.teacher_start.config:
            raise ValueError("its model has another shape")
    except (ValueError, OSError) as e:
        raise RunError(f"{folder} holds no complete teacher of {task.name} ({e}); delete it to train it anew") from None
    is_time = type(seconds) in (int, float) and 0 <= seconds < 1e9
    run.teacher_times[task.name] = seconds if is_time else None
    return run.ready(teacher)
