"""The README says what is there. python -m pytest tests/test_readme.py"""

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
from data import encode_prompt, load_task
from eval import load_model
from lab import cost, nano
from lab.experiments import keys_of, name_for
from lab.options import Options, parse
from lab.paper import spread
from lab.prepare import TABLE_1
from model import generate

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HACKS = (ROOT / "lab" / "HACKS.md").read_text(encoding="utf-8")


def test_each_line_of_algorithm_1_in_the_table_stands_in_train_py():
    code, named = (ROOT / "train.py").read_text(encoding="utf-8"), re.findall(r"Alg\. 1, lines? [\d, and-]*\d", README)
    assert len(named) == 5 and all(line in code for line in named)
    numbers = {int(n) for line in named for n in re.findall(r"\d+", line.split(",", 1)[1])}
    assert {1, 2, 3, 5, 7, 9, 11} <= numbers


def test_every_test_that_the_faithfulness_table_names_exists():
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py"))
    named = set(re.findall(r"`(test_\w+)`", README))
    assert len(named) > 40
    assert not [name for name in named if f"def {name}(" not in tests]


def test_the_map_names_every_file_and_no_other():
    files = {path.name for path in ROOT.glob("*.py")}
    files |= {
        f"lab/{path.name}" for path in (ROOT / "lab").iterdir() if path.suffix in (".py", ".md", ".ipynb", ".json")
    }
    listed = README.split("## Map of the files")[1].split("```")[1]
    assert {line.split()[0] for line in listed.strip().splitlines()} == files - {"lab/__init__.py"} | {
        "tests/",
        "lab/hacks/",
        "lab/assets/",
        "lab/results/",
    }


def test_every_option_that_is_named_is_one():
    code = "\n".join(path.read_text(encoding="utf-8") for path in (*ROOT.glob("*.py"), *(ROOT / "lab").glob("*.py")))
    known = {f"--{f.name.strip('_').replace('_', '-')}" for f in dataclasses.fields(Options)}
    known |= set(re.findall(r'"(--[a-z-]+)"', code))
    foreign = {"--nproc_per_node", "--process-slot-var", "--array", "--gres", "--cpus-per-task", "--mem", "--time"}
    foreign |= {"--requeue", "--signal", "--help"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", README + HACKS))
    assert not {o for o in named - foreign if o not in known and o.replace("--no-", "--") not in known}


def test_the_chapters_stand_in_the_order_of_reading():
    chapters = re.findall(r"^## (.*)", README, re.M)
    wanted = ["Two commands", "What it is, and what it is not", "The real run", "Results", "The method in one page"]
    wanted += ["Map of the files, in reading order", "Faithfulness", "What is logged", "What a run promises"]
    assert [c for c in chapters if c in wanted] == wanted


def test_numbers_of_runs_and_sizes_of_data_are_those_of_the_code():
    runs = len(keys_of("table3", [0]))
    assert f"#SBATCH --array=1-{runs}%8" in README and f"# its {runs} runs" in README
    for task, (n, n_test) in TABLE_1.items():
        short = "." + task.split(".")[-1]
        row = next(
            line
            for line in README.splitlines()
            if line.startswith("| `") and (f"`{task}`" in line or f"`{short}`" in line)
        )
        assert f"{n:,} / {n_test:,}" in row, task


def test_what_the_hacks_page_names_is_there_and_what_it_measured_is_kept():
    for line in HACKS.splitlines():
        if line.startswith("| ") and ".py`: " in line:
            for file, names in re.findall(r"`(\w+\.py)`: ((?:`[\w.]+`(?:, )?)+)", line):
                code = (ROOT / file).read_text(encoding="utf-8")
                for name in re.findall(r"`([\w.]+)`", names):
                    assert re.search(rf"(def|class) {name.split('.')[-1]}\b", code), (file, name)
        if patch := re.search(r"\| (\d+), \[patch\]\(hacks/(\w+)\.patch\)", line):
            lines = (ROOT / "lab" / "hacks" / f"{patch[2]}.patch").read_text(encoding="utf-8").splitlines()
            assert sum(bool(re.match(r"[+-](?![+-]{2} )", one)) for one in lines) == int(patch[1])
            runs = sorted((ROOT / "lab" / "results" / "hacks" / patch[2]).glob("*/summary.json"))
            assert len(runs) == 3
            averages = [json.loads(run.read_text(encoding="utf-8"))["average"] for run in runs]
            assert spread(averages) in line
    found = nano.collected()["Word-KD", 0]
    assert f"against {spread([s['average'] for s in found[:3]])}" in HACKS


def test_the_numbers_of_the_exercises_are_those_of_kept_runs():
    kept = ROOT / "lab" / "results"
    for row in re.findall(r"^\| \d \| `python train.*", HACKS, re.M):
        commands, numbers = re.findall(r"`python train\.py ([^`]*)`", row), row.split("|")[3]
        for command in commands:
            if "--continue" in command:
                (run,) = kept.glob("hacks/exercises/*continue=*")
            else:
                name = name_for(command.split())
                run = next(p for p in (kept / "hacks" / "exercises" / name, kept / "nano" / name) if p.exists())
            summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
            last = [f"{score:.0f}" for score in list(summary["scores"].values())[-1].values()]
            assert f"{summary['average']:.1f}; {', '.join(last[:3])}" in numbers, command
            assert len(last) == 3 or f"{summary['order'][3]} {last[3]}" in numbers


def test_links_lead_somewhere():
    for text, folder in ((README, ROOT), (HACKS, ROOT / "lab")):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (folder / target).exists(), target


def test_tables_are_what_the_commands_print(capsys):
    cost.main([])
    assert capsys.readouterr().out.strip() in README
    assert nano.comparison_table(nano.collected()) in README


def code_blocks(word: str) -> list[str]:
    """The README's Python blocks with a word in them."""
    return [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if word in block]


def test_a_hugging_face_data_set_becomes_a_task_in_three_lines(tmp_path, monkeypatch):
    (block,) = code_blocks("load_dataset")
    assert len([line for line in block.splitlines() if line and not line.startswith(("import", "NAMES"))]) == 3
    rows = {"text": ["a goal", "a bank", "a king"], "label": [1, 2, 0]}
    there = datasets.DatasetDict({split: datasets.Dataset.from_dict(rows) for split in ("train", "test")})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: there)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    task = load_task("agnews", "", "")
    assert [(e.context, e.question, e.answer) for e in task.test] == [
        (text, "what is it about?", ("world", "sports", "business")[label]) for text, label in zip(*rows.values())
    ]


def test_a_trained_student_answers_in_transformers_as_here(lab, capsys):
    transformers = pytest.importorskip("transformers")
    assert train.main([*lab, "--epochs", "9"]) == 0
    (run,) = Path(lab[5]).glob("colors+*")
    capsys.readouterr()
    (block,) = code_blocks("GPT2LMHeadModel")
    exec(block.replace("RUN", str(run)), {})
    said = capsys.readouterr().out.strip()
    ours, tok, config = load_model(str(run / "model"))
    theirs = transformers.GPT2LMHeadModel.from_pretrained(run / "model")
    prompts = [
        encode_prompt(e.context, e.question, tok, config["max_len"], 20)
        for e in load_task(lab[1].split(",")[0], "", "").test
    ]
    answers = generate(ours, prompts, 20, tok.eos_id)
    for prompt, answer in zip(prompts, answers):
        ids = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=tok.pad_id)
        assert ids[0, len(prompt) :].tolist() == answer
    ours_too = encode_prompt(*re.findall(r'"(the table.*?|what is the tr.*?)"', block), tok, config["max_len"], 20)
    assert said == tok.decode(generate(ours, [ours_too], 20, tok.eos_id)[0])


def test_the_offline_commands_of_the_hacks_page_are_understood(tmp_path):
    """Each `python train.py ...` in it is parsed; those with a patch are run by tests/test_hacks.py."""
    commands = re.findall(r"python train\.py[^`\n#|&]*", README + HACKS)
    assert len(commands) > 10
    for command in commands:
        words = command.split()[2:]
        if "--continue" not in words and "--help" not in words and not set("[]<>") & set(command):
            parse(words)
    assert subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True).returncode == 0
