"""README and lab/docs say what is there. python -m pytest tests/test_docs.py"""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch

import train
from data import encode_prompt
from eval import greedy
from eval import table as eval_table
from lab.fast.decode import decode
from lab.paper import __main__ as paper
from lab.paper import cost
from lab.paper.experiments import keys_of
from lab.paper.numbers import final
from lab.paper.runs import name_for
from lab.paper.tables import spread
from lab.run.options import Options, parse
from lab.run.pretrained import load_student
from lab.run.rundir import read_run
from lab.tasks import TASKS, load_task

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HACKS = (ROOT / "lab" / "HACKS.md").read_text(encoding="utf-8")
DOCS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "lab" / "docs").glob("*.md")}
EVERYTHING = "\n".join([README, HACKS, *DOCS.values()])
CODE = [*ROOT.glob("*.py"), *(ROOT / "lab").rglob("*.py")]


def average_of(run: Path) -> float:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))["average"]


def test_the_readme_has_two_pages():
    assert len(README.splitlines()) <= 200 and len(README.split()) <= 2500


def test_the_chapters_stand_in_the_order_of_reading():
    wanted = ["Two commands", "What it is, and what it is not", "The real run", "The method in one page"]
    wanted += ["Map of the files", "Results", "Faithfulness", "Hack it", "Licence, citation"]
    assert re.findall(r"^## (.*)", README, re.M) == wanted


def test_the_test_command_is_the_one_of_ci():
    (command,) = re.findall(r"requirements-dev\.txt && (python -m pytest.*)", README)
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_map_names_every_file_and_folder():
    listed = README.split("## Map of the files")[1].split("```")[1]
    for path in (*ROOT.glob("*.py"), *(ROOT / "lab").iterdir()):
        name = path.name if path.parent == ROOT else f"lab/{path.name}{'/' if path.is_dir() else ''}"
        if path.name not in ("__init__.py", "__pycache__", "errors.py", "files.py", "HACKS.md", "assets", "results"):
            assert re.search(rf"(^|\s){re.escape(name)}\s", listed), name
    for name in re.findall(r"^(\S+)", listed, re.M):
        assert (ROOT / name).exists(), name


def test_what_the_table_of_algorithm_1_names_is_in_the_code():
    table = README.split("| Algorithm 1, for each task m |")[1].split("\n\n")[0]
    named = re.findall(r"`(\w+)\.(\w+)`", table)
    assert len(named) >= 6
    for file, name in named:
        assert f"def {name}(" in (ROOT / f"{file}.py").read_text(encoding="utf-8"), name
    code = (ROOT / "train.py").read_text(encoding="utf-8")
    assert all(f"Alg. 1, line {n}" in code or f"Alg. 1, lines {n}" in code for n in (1, 2, 3, 4, 5))


def test_every_test_that_the_faithfulness_table_names_exists():
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py"))
    named = set(re.findall(r"`(test_\w+)`", EVERYTHING))
    assert len(named) > 40
    assert not [name for name in named if f"def {name}(" not in tests]


def test_every_option_that_is_named_is_one():
    known = {f"--{f.name.strip('_').replace('_', '-')}" for f in dataclasses.fields(Options)}
    for path in CODE:
        known |= set(re.findall(r'"(--[a-z-]+)"', path.read_text(encoding="utf-8")))
    foreign = {"--nproc_per_node", "--process-slot-var", "--array", "--gres", "--cpus-per-task", "--mem", "--time"}
    foreign |= {"--requeue", "--signal", "--help"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", EVERYTHING))
    assert not {o for o in named - foreign if o not in known and o.replace("--no-", "--") not in known}


def test_every_module_and_path_that_is_named_is_there():
    for module in set(re.findall(r"python -m (lab[\w.]*)", EVERYTHING)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for path in set(re.findall(r"`((?:lab|tests)/[\w./]+)`", EVERYTHING)):
        assert (ROOT / path).exists(), path
    for text, folder in (
        (README, ROOT),
        (HACKS, ROOT / "lab"),
        *((text, ROOT / "lab" / "docs") for text in DOCS.values()),
    ):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (folder / target).exists(), target


def test_every_train_command_is_understood():
    """Those with a patch are run by tests/test_hacks.py."""
    commands = re.findall(r"python train\.py[^`\n#|&]*", EVERYTHING)
    assert len(commands) > 10
    for command in commands:
        words = command.split()[2:]
        if "--continue" not in words and "--help" not in words and not set("[]<>") & set(command):
            parse(words)
    assert subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True).returncode == 0


# ---------------------------------------------------------------------- numbers


def test_numbers_of_runs_and_sizes_of_data_are_those_of_the_code():
    runs = len(keys_of("table3", [0]))
    assert f"#SBATCH --array=1-{runs}%8" in DOCS["CLUSTER"] and f"# its {runs} runs" in DOCS["REPRODUCE"]
    for task in (name for name, info in TASKS.items() if info.sizes):
        short = "." + task.split(".")[-1]
        lines = [line for line in DOCS["DATA"].splitlines() if line.startswith("| `")]
        row = next(line for line in lines if f"`{task}`" in line or f"`{short}`" in line)
        assert "{:,} / {:,}".format(*TASKS[task].sizes) in row, task


def test_tables_are_what_the_commands_print(capsys, tmp_path):
    cost.main([])
    assert capsys.readouterr().out.strip() in DOCS["REPRODUCE"]
    assert paper.main(["toy", "--runs-dir", str(tmp_path)]) == 0
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == 3 and all(table in DOCS["RESULTS"] for table in tables)
    for row in re.findall(r"^\| (finetune|LAMOL|Word-KD|Seq-KD_soft|Seq-KD) \| \d+ \| (.*) \|$", tables[0], re.M):
        first, _, second, _ = row[1].split(" | ")
        assert f"| {row[0]} | {first} | {second} |" in README


def test_the_table_of_the_default_run_is_that_of_its_record():
    (run,) = (ROOT / "lab" / "results" / "default").iterdir()
    summary = read_run(run)
    assert f"```\n{eval_table(summary)}\n```" in README
    assert f"({summary['wall_time_s']:.0f} s with two threads, 2026-11-25, `lab/results/default`)" in README


def test_word_kd_minus_lamol_is_as_the_readme_says():
    """The same three seeds, first order: the authors' rule is `joint` for LAMOL and `added` for Word-KD."""
    results = ROOT / "lab" / "results" / "nano"

    def mean(kd, rule):
        names = (f"toy.woz+toy.sql+toy.cnn-lamol-{kd}-g0.2-s{seed}{rule}" for seed in range(3))
        return sum(average_of(results / name) for name in names) / 3

    added = mean("word", "") - mean("none", "-replay-loss=added")
    joint = mean("word", "-replay-loss=joint") - mean("none", "")
    for text in (README, DOCS["RESULTS"]):
        assert f"{added:+.1f} points under `added`" in text or f"{added:+.1f} under `added`" in text
        assert f"{joint:+.1f} under `joint`" in text


def test_table_4_on_nano_is_that_of_recorded_runs():
    results = ROOT / "lab" / "results" / "table4"
    tasks = ("rnnlg.laptop", "rnnlg.tv", "rnnlg.hotel", "rnnlg.rest", "e2e", "avg")
    rows = {"single models (the teachers)": "e2e*-single-none-*", "LAMOL": "rnnlg*-none-*", "Word-KD": "rnnlg*-word-*"}
    rows |= {"Seq-KD_soft": "rnnlg*-seqsoft-*", "Seq-KD": "rnnlg*-seq-*"}
    for label, name in rows.items():
        (run,) = results.glob(name)
        numbers = " | ".join(f"{final(run)[task]:.1f}" for task in tasks)
        assert f"| {label} | {numbers} |" in README
        assert f" | {numbers} | " in DOCS["RESULTS"]


def test_measured_hacks_are_recorded():
    for line in HACKS.splitlines():
        if patch := re.search(r"\| (\d+), \[patch\]\(hacks/(\w+)\.patch\)", line):
            lines = (ROOT / "lab" / "hacks" / f"{patch[2]}.patch").read_text(encoding="utf-8").splitlines()
            assert sum(bool(re.match(r"[+-](?![+-]{2} )", one)) for one in lines) == int(patch[1])
            runs = sorted((ROOT / "lab" / "results" / "hacks" / patch[2]).glob("*/summary.json"))
            assert len(runs) == 3 and spread([average_of(run.parent) for run in runs]) in line
    word = [ROOT / "lab" / "results" / "nano" / f"toy.woz+toy.sql+toy.cnn-lamol-word-g0.2-s{seed}" for seed in range(3)]
    assert f"against {spread([average_of(run) for run in word])}" in HACKS


def test_the_numbers_of_the_exercises_are_those_of_recorded_runs():
    exercises = ROOT / "lab" / "results" / "hacks" / "exercises"
    rows = re.findall(r"^\| \d \| `python train.*", HACKS, re.M)
    assert len(rows) == 5
    for row in rows:
        commands, numbers = re.findall(r"`python train\.py ([^`]*)`", row), row.split("|")[3]
        for command in commands:
            name = name_for(command.split()) if "--continue" not in command else "*continue=*"
            (run,) = exercises.glob(name)
            summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
            last = [f"{score:.0f}" for score in list(summary["scores"].values())[-1].values()]
            assert f"{summary['average']:.1f}; {', '.join(last[:3])}" in numbers, command
            assert len(last) == 3 or f"{summary['order'][3]} {last[3]}" in numbers


# ---------------------------------------------------------------------- code in the docs


def code_block(word: str) -> str:
    """The Python block of the docs with a word in it."""
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", EVERYTHING, re.S) if word in block)
    return block


def test_a_hugging_face_data_set_becomes_a_task_in_a_few_lines(tmp_path, monkeypatch):
    rows = {"text": ["a goal", "a bank", "a king", "nobody knows"], "label": [1, 2, 0, -1]}
    there = datasets.DatasetDict({split: datasets.Dataset.from_dict(rows) for split in ("train", "test")})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: there)
    monkeypatch.chdir(tmp_path)
    exec(code_block("load_dataset"), {})
    task = load_task("agnews", "", "")
    labelled = [(text, label) for text, label in zip(*rows.values()) if label >= 0]
    assert [(e.context, e.question, e.answer) for e in task.test] == [
        (text, "what is it about?", ("world", "sports", "business")[label]) for text, label in labelled
    ]


def test_a_trained_student_answers_in_transformers_as_here(lab, capsys):
    transformers = pytest.importorskip("transformers")
    assert train.main([*lab, "--epochs", "9"]) == 0
    (run,) = Path(lab[5]).glob("colors+*")
    capsys.readouterr()
    block = code_block("GPT2LMHeadModel")
    exec(block.replace("RUN", str(run)), {})
    printed = capsys.readouterr().out.strip()
    ours, tok, config = load_student(run / "model")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(run / "model")
    examples = load_task(lab[1].split(",")[0], "", "").test
    prompts = [encode_prompt(e.context, e.question, tok, config["max_len"], 20) for e in examples]
    for prompt, answer in zip(prompts, decode(ours, prompts, [20] * len(prompts), tok.eos_id, greedy)):
        ids = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=tok.pad_id)
        assert ids[0, len(prompt) :].tolist() == answer
    prompt = encode_prompt(*re.findall(r'"(the table.*?|what is the tr.*?)"', block), tok, config["max_len"], 20)
    assert printed == tok.decode(decode(ours, [prompt], [20], tok.eos_id, greedy)[0])
