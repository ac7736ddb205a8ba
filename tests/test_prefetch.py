"""One command fetches all that runs need; after it they need no network. python -m pytest tests/test_prefetch.py"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Machine, serve_hub

import train
from lab import prefetch
from lab.paper.experiments import keys_of
from lab.run.pretrained import NANO

ROOT = Path(__file__).parents[1]
NOWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # where nothing listens


@pytest.fixture
def site():
    with serve_hub() as site:
        yield site


@pytest.fixture
def machine(site, tmp_path):
    return Machine(tmp_path, site.url)


@pytest.fixture
def gpt2_lab(lab, tmp_path):
    """The options of a small run that starts from gpt2."""
    return [*lab, "--model", "gpt2", "--epochs", "1", "--kd", "none", "--cache-dir", str(tmp_path / "l2kd")]


def test_after_it_the_run_needs_no_network(site, machine, gpt2_lab):
    outcome = machine.call(prefetch.main, gpt2_lab)
    assert outcome.value == 0, outcome
    assert "colors: 9 / 9 examples" in outcome.out and outcome.out.endswith("do not try the network\n")
    site.log.clear()
    for environment in (NOWHERE, {"HF_HUB_OFFLINE": "1"}):
        run = machine.call(train.main, gpt2_lab, **environment)
        assert run.value == 0 and site.log == [], run
        shutil.rmtree(machine.home / "runs")


def test_it_takes_the_teachers_model_too(site, machine, gpt2_lab):
    options = [*gpt2_lab, "--teacher-model", "them/large"]
    assert machine.call(prefetch.main, options).value == 0  # without distillation there is no teacher
    options[options.index("none")] = "word"
    outcome = machine.call(prefetch.main, options)
    assert outcome.value == 1 and "them/large: no folder, and no repository" in outcome.err
    for file in ("config.json", "model.safetensors"):
        site.files["them/large", file] = (NANO / file).read_bytes()
    outcome = machine.call(prefetch.main, options)
    assert outcome.value == 0 and "them/large (--teacher-model) is downloaded once" in outcome.out


def test_what_cant_be_had_does_not_keep_the_rest_away(site, machine, gpt2_lab, tmp_path):
    (tmp_path / "colors" / "train.jsonl").write_text("{")
    outcome = machine.call(prefetch.main, gpt2_lab)
    assert outcome.value == 1 and "sizes: 8 / 8 examples" in outcome.out
    first, last = outcome.err.splitlines()
    assert str(tmp_path / "colors" / "train.jsonl") in first and last.startswith("error: 1 of 3 could not be had")
    outcome = machine.call(prefetch.main, gpt2_lab, HF_ENDPOINT="http://127.0.0.1:9", HOME=str(tmp_path / "new"))
    assert outcome.value == 1 and "all is there" not in outcome.out


def small_table(argv):
    """The command with a table whose tasks are this test's, since those of the paper have raw files to download."""
    asked = []
    prefetch.fetch_task = lambda entry, *rest: asked.append(entry) or entry
    return prefetch.main(argv), asked


@pytest.mark.parametrize("what, model", [("table3", "gpt2"), ("figure4", "nano"), ("claims", "gpt2")])
def test_a_table_has_the_models_and_tasks_of_all_its_runs(what, model, site, machine):
    outcome = machine.call(small_table, [what, "--cache-dir", str(machine.home / "l2kd")])
    code, asked = outcome.value
    assert code == 0 and f"{model}: /" in outcome.out, outcome
    assert len(asked) == len(set(asked))
    assert set(asked) == {task for key in keys_of(what, [0]) for task in key.order.split(",")}


@pytest.mark.parametrize(
    "argv, text",
    [
        (["table33"], "invalid choice: 'table33' (choose from 'table2', 'table3'"),
        (["table3", "--order", "woz"], "--order: an experiment sets it itself"),
        (["table3", "--modle", "x"], "unrecognized arguments: --modle x"),
        (["--order", "woz,nothing"], "unknown task 'nothing'"),
        (["--model", "gpt3"], "--model gpt3: neither gpt2"),
    ],
)
def test_bad_usage_is_one_line_and_2(argv, text, capsys):
    with pytest.raises(SystemExit) as e:
        prefetch.main(argv)
    said = capsys.readouterr().err
    assert e.value.code == 2 and text in said and said.count("\n") == 1


def test_the_default_run_needs_nothing_and_help_says_how(capsys):
    assert prefetch.main([]) == 0
    assert "toy.cnn: 300 / 100 examples" in capsys.readouterr().out
    assert prefetch.main(["--help"]) == 0
    assert "python -m lab.prefetch table3" in capsys.readouterr().out


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode,
    reason="needs a network namespace",
)
def test_the_run_works_where_there_is_no_network_at_all(machine, gpt2_lab):
    assert machine.call(prefetch.main, gpt2_lab).value == 0
    code = "import sys, hub_server, train; hub_server.patch(); sys.exit(train.main(sys.argv[1:]))"
    environment = os.environ | machine.environment | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = ["unshare", "-rn", sys.executable, "-c", code, *gpt2_lab]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    (summary,) = (machine.home / "runs").glob("*/summary.json")
    assert json.loads(summary.read_text())["order"] == ["colors", "sizes"]
