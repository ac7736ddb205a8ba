"""Every reader of the project, with files that it reads: real ones where there are some, else made ones."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from data import Example, Task
from eval import METRICS, score
from lab.files import append_jsonl, write_json
from lab.paper.experiments import cells_of, keys_of
from lab.paper.figures import draw
from lab.paper.numbers import hits
from lab.run.checkpoint import kept_of, last_checkpoint, load_moments, save_checkpoint, weights_of
from lab.run.options import Options, differences, parent_of
from lab.run.pretrained import load_student, save_gpt
from lab.run.report import worked_examples
from lab.run.resume import fitting_checkpoint
from lab.run.rundir import read_run
from lab.run.teachers import load_teacher
from lab.tasks import load_task
from lab.tasks.cnn import story_name
from lab.tasks.prepare import prepare
from lab.tasks.squad import from_lamol
from model import GPT, GPTConfig

TASKS_OF_A_RUN = ("woz", "sql", "cnn")


@dataclass
class Reader:
    """Files, and what reads them from a folder. inner: of an archive its members and its packing, so that members can
    be changed, too."""

    name: str
    files: dict[str, bytes]
    read: Callable[[Path], object]
    inner: dict[str, tuple[dict[str, bytes], str]] = field(default_factory=dict)


def readers(data: Path, folder: Path) -> list[Reader]:
    """All readers. data: a data directory with real files; folder: for files that are made."""
    return [*real_files(data), *made_archives(), *own_tasks(), model_reader(folder), *run_readers(folder)]


# ---------------------------------------------------------------------- data sets


def head(path: Path, size=15000) -> bytes:
    """The first bytes of a real file, up to the end of a line or a record. A JSON list is closed again."""
    raw = path.read_bytes()
    start = raw.find(b"[") if path.suffix == ".json" else -1  # RNNLG has lines of # before it
    if start >= 0:
        items = json.loads(raw[start:])
        while len(json.dumps(items)) > size and len(items) > 1:
            items = items[: len(items) // 2]
        return raw[:start] + json.dumps(items, indent=1).encode()
    return raw[: raw.rfind(b"\n", 0, size) + 1] if len(raw) > size else raw


def archive(members: dict[str, bytes], mode: str) -> bytes:
    """A tar archive, in memory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{mode}") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def prepares(task: str, files: dict[str, bytes], inner=None) -> Reader:
    """The reader of a data set's raw files, below its folder of the data directory."""
    name = f"{task}: {', '.join(map(os.path.basename, files))}"
    return Reader(name, files, partial(lambda task, at: prepare(task, at, at / "cache"), task), inner or {})


def packed(task: str, name: str, members: dict[str, bytes], mode: str) -> Reader:
    """The reader of one archive."""
    return prepares(task, {name: archive(members, mode)}, {name: (members, mode)})


def real_files(data: Path) -> list[Reader]:
    """The readers of the raw files that are there."""
    tables = [f"{split}{kind}.jsonl" for split in ("train", "test") for kind in ("", ".tables")]
    sets = [
        ("woz", {f"woz/woz_{s}_en.json": f"woz/woz_{s}_en.json" for s in ("train", "test")}),
        ("sql", {f"wikisql/{name}": f"wikisql/{name}" for name in tables}),
        ("cnn", {f"cnn_dailymail/{s}.csv": "cnn_dailymail/sample.csv" for s in ("train", "test")}),
        ("cnn", {f"cnn_dailymail/{s}.jsonl": f"cnn_dailymail/{s}.jsonl" for s in ("train", "test")}),
        ("e2e", {f"e2e/{name}.csv": f"e2e/{name}.csv" for name in ("trainset", "testset_w_refs")}),
        ("ag", {f"ag_news/{s}.csv": f"ag_news/{s}.csv" for s in ("train", "test")}),
    ]
    for task, name in (("rest", "restaurant"), ("hotel", "hotel"), ("tv", "tv"), ("laptop", "laptop")):
        files = [f"rnnlg/{name}/{split}.json" for split in ("train", "test")]
        sets.append((f"rnnlg.{task}", dict(zip(files, files))))
    found = []
    for task, files in sets:
        if all((data / path).is_file() for path in files.values()):
            found.append(prepares(task, {name: head(data / path) for name, path in files.items()}))
            if task == "sql":
                members = {f"data/{Path(name).name}": content for name, content in found[-1].files.items()}
                found.append(packed("sql", "wikisql/data.tar.bz2", members, "bz2"))
    return found


def made_archives() -> list[Reader]:
    """Small files in the form of the public archives."""
    rows = {"yelp/yelp_review_full": b'"5","good \\n food"\n"1","bad ""food"""\n'}
    rows |= {"amazon/amazon_review_full": b'"5","good","a \\n book"\n"1","bad","a ""book"""\n'}
    rows |= {"dbpedia/dbpedia": b'1,"A","a company"\n2,"B","a school"\n'}
    rows |= {"yahoo/yahoo_answers": b'"1","why","so","it is"\n"2","who","","he"\n'}
    found = []
    for name, lines in rows.items():
        members = {f"{Path(name).name}_csv/{split}.csv": lines * 9 for split in ("train", "test")}
        found.append(packed(name.split("/")[0], f"{name}_csv.tgz", members, "gz"))
    urls = [b"http://x/a.html", b"http://x/b.html"]
    story = b"An article.\n\nIts end.\n\n@highlight\n\nA highlight\n\n@highlight\n\nAnother"
    stories = {f"cnn/stories/{story_name(url.decode())}.story": story for url in urls}
    inner = {f"cnn_dailymail/{paper}_stories.tgz": (stories, "gz") for paper in ("cnn", "dailymail")}
    files = {f"cnn_dailymail/all_{split}.txt": b"\n".join(urls) for split in ("train", "test")}
    files |= {name: archive(*packing) for name, packing in inner.items()}
    return [*found, prepares("cnn", files, inner), squad_reader()]


def squad_reader() -> Reader:
    """The authors' own processed files."""
    qas = [{"question": "q?", "id": "1", "answers": [{"text": "an answer", "answer_start": 0}], "is_impossible": False}]
    paragraphs = [{"context": "a context", "qas": qas}] * 5
    squad = json.dumps({"version": "1", "data": [{"title": "t", "paragraphs": paragraphs}]}).encode()
    files = {f"woz.en_to_squad-{split}-v2.0.json": squad for split in ("train", "test")}
    files |= {"woz.en_answers.json": json.dumps([["en_0_0", "an answer"]] * 5).encode()}
    return Reader("the authors' files", files, lambda at: from_lamol(str(at), str(at / "out")))


def own_tasks() -> list[Reader]:
    """A user's task of each metric."""

    def read_and_score(at):
        task = load_task(str(at / "own"), "", "", multi_reference=True)
        score(task, [example.answer for example in task.test])

    meta = {"turn": "en_0_1", "references": ["a b", "a"], "header": ["a", "b"]}
    meta["sql"] = {"sel": 0, "agg": 0, "conds": [[1, 0, "x"]]}
    answers = {"lfem": "select a from table where b = x", "joint_goal_em": "color: red; phone"}
    found = []
    for metric in METRICS:
        row = {"context": "a red car", "question": "color?", "answer": answers.get(metric, "red car"), "meta": meta}
        text = "".join(json.dumps(row | {"id": i}) + "\n" for i in "ab").encode()
        task = json.dumps({"metric": metric}).encode()
        files = {"own/train.jsonl": text, "own/test.jsonl": text, "own/task.json": task}
        found.append(Reader(f"a task of one's own, {metric}", files, read_and_score))
    return found


# ---------------------------------------------------------------------- models and runs


def tiny() -> GPT:
    return GPT(GPTConfig(vocab_size=4048, n_positions=8, n_embd=8, n_layer=1, n_head=2))


def model_reader(folder: Path) -> Reader:
    """The model of a run."""
    extra = {"tokenizer": "nano", "task_slots": {"toy.woz": 4010}, "max_len": 8, "answer_budgets": {"toy.woz": 2}}
    save_gpt(tiny(), folder / "model", **extra)
    files = {f"model/{p.name}": p.read_bytes() for p in (folder / "model").iterdir()}
    return Reader("a model", files, lambda at: load_student(at / "model")[0](torch.zeros(1, 2, dtype=torch.long)))


def run_readers(folder: Path) -> list[Reader]:
    """What reads a run's directory: its table, --continue, --resume, worked examples, the tables of the paper."""
    run = folder / "run"
    run.mkdir()
    append_jsonl(run / "scores.jsonl", {"stage": 1, "epoch": 1, "task": "a", "score": 1.0})
    state = {"phase": "", "stages": 1, "stage": 1, "name": "a", "said": "", "seconds": 1.0, "phase_seconds": 1.0}
    state |= {"epoch": 0, "samples_seen": 0, "steps": 0, "teacher_times": {"a": 1.0}, "made_here": {}, "scaler": {}}
    save_checkpoint(run, state, tiny(), None, {"hook": torch.ones(2)})
    model, optimizer = with_moments()
    save_checkpoint(run, state | {"phase": "student", "epoch": 1, "steps": 1}, model, optimizer)
    options = asdict(Options(method="lamol", kd="word", model="nano", order="woz"))
    options |= {"epochs": 1, "lr": 0.1, "batch_size": 8, "adam_epsilon": 1e-8, "eval_every_epoch": True}
    config = options | {"tasks": ["woz"], "data": {"woz": "0"}, "slots": {"a": 1010}}
    write_json(run / "config.json", config)
    summary = {"order": ["a"], "method": "lamol", "scores": {"0": {"a": 0.0}, "1": {"a": 1.0}}, "average": 1.0}
    summary |= dict.fromkeys(("backward_transfer", "forward_transfer", "forgetting"))
    write_json(run / "summary.json", summary)
    files = {str(p.relative_to(folder)): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    parent = {name: files[name] for name in ("run/config.json", "run/summary.json")}
    cut_off = {name: content for name, content in files.items() if "checkpoint" in name or "scores" in name}
    table = {"run/summary.json": files["run/summary.json"]}
    options_alone = {"run/config.json": files["run/config.json"]}
    return [
        Reader("a run's table", table, lambda at: read_run(at / "run")),
        Reader("a run to continue", parent, lambda at: parent_of(str(at / "run"))),
        Reader("the options of a run to resume", options_alone, lambda at: differences(at / "run/config.json", config)),
        Reader("a checkpoint", cut_off, lambda at: go_on(at / "run")),
        Reader("a teacher", teacher_files(folder), find_teacher),
        Reader("the texts of a run", texts_of_a_run(), show_texts),
        Reader("a run behind a table", behind(summary), lambda at: read_tables(at / "run")),
    ]


def with_moments():
    """A model and its optimizer after one update."""
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 2, dtype=torch.long)).sum().backward()
    optimizer.step()
    return model, optimizer


def go_on(run: Path) -> None:
    """What --resume does with checkpoints."""
    found, base = last_checkpoint(run, True, 2**40)
    model, optimizer = with_moments()
    with fitting_checkpoint(SimpleNamespace(dir=run)):
        if base:
            model.load_state_dict(weights_of(base[1]))
        if found:
            kept_of(*found, torch.device("cpu"))
            model.load_state_dict(weights_of(found[1]))
            if found[0]["phase"]:
                load_moments(*found, optimizer)


def teacher_files(folder: Path) -> dict[str, bytes]:
    """A teacher as a run has saved it."""
    save_gpt(tiny(), folder / "teacher" / "model", tokenizer="nano")
    write_json(folder / "teacher" / "config.json", {"task": "a", "seconds": 1.0})
    return {str(p.relative_to(folder)): p.read_bytes() for p in (folder / "teacher").rglob("*") if p.is_file()}


def find_teacher(at: Path) -> None:
    run = SimpleNamespace(teacher_start=tiny(), teacher_times={}, device=torch.device("cpu"), ready=lambda model: model)
    load_teacher(run, Task("a", "em", [], []), at / "teacher")


def texts_of_a_run() -> dict[str, bytes]:
    """The answers and pseudo-samples of a run with one stage."""
    answers = [{"task": "a", "id": str(i), "prediction": "red", "answer": "red"} for i in range(3)]
    parts = {"context_and_question": "a red car color?", "answer": "red", "ids": [4010, 5]}
    pseudo = [{"task": "a", "source": "generated", "rejected": why} | parts for why in ("", "no ANS")]
    rows = {"run/1-a/predictions.jsonl": answers, "run/1-a/pseudo.jsonl": pseudo}
    return {name: "".join(json.dumps(x) + "\n" for x in lines).encode() for name, lines in rows.items()}


def show_texts(at: Path) -> None:
    examples = [Example("a red car", "color?", "red", str(i)) for i in range(3)]
    worked_examples(SimpleNamespace(dir=at / "run", tasks=[Task("a", "em", [], examples)]))


def behind(summary: dict) -> dict[str, bytes]:
    """The files of a run that the tables and figures of the paper read."""
    scores = [
        {"stage": m, "epoch": 1, "task": t, "score": 5.0, "metric": "em"} for m in range(4) for t in TASKS_OF_A_RUN
    ]
    answers = [{"task": t, "id": "1", "prediction": "a", "answer": "a"} for t in TASKS_OF_A_RUN]
    rows = {"run/scores.jsonl": scores, "run/3-cnn/predictions.jsonl": answers}
    files = {name: "".join(json.dumps(x) + "\n" for x in lines).encode() for name, lines in rows.items()}
    last = dict.fromkeys(TASKS_OF_A_RUN, 1.0)
    summary = summary | {"order": list(TASKS_OF_A_RUN), "scores": {"0": last, "3": last}}
    summary |= {"parameters": 10, "wall_time_s": 1.0, "teacher_time_s": 0.5, "teacher_time_here_s": 0.5}
    return files | {"run/summary.json": json.dumps(summary).encode()}


def read_tables(run: Path) -> None:
    """What lab.paper makes of a run: a table, a curve, costs, an agreement."""
    key = keys_of("figure3", [0])[0]
    draw("figure3", cells_of("figure3", {key: run}, [0]), run / "figure.png")
    for what in ("table2", "claims"):
        cells_of(what, {key: run}, [0])
    hits(run)
