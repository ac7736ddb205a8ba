"""Tables from made-up runs: numbers, layout, what is missing, and that all runs had the same data.

python -m pytest tests/test_paper_tables.py"""

import json
import re
import shutil
from statistics import mean, stdev

import pytest
from paper_runs import CLASSES, RUNS, answer, as_published, at, fails, finish, rows_of, same

from lab.paper import claims
from lab.paper.__main__ import main
from lab.paper.experiments import DEVIATION, EXPERIMENTS, MEAN, PLAIN, PUBLISHED, Experiment, keys_of, orders_of
from lab.paper.runs import FIGURES, RunKey, copy_small_files

ORDERS = orders_of("table2")
LEFT_TO_RIGHT, RIGHT_TO_LEFT = orders_of("table4")
TABLES = ("table2", "table3", "table4", "table5", "table6", "table8")


@pytest.fixture(scope="session")
def published_runs(tmp_path_factory):
    return as_published(tmp_path_factory.mktemp("published"))


@pytest.fixture
def table(capsys):
    """table(what, *options, missing=False) -> what is printed, as lists of dictionaries."""
    return lambda what, *options, **k: rows_of(capsys, what, "--model", "gpt2", *options, **k)  # or Table 4 is nano's


# ---------------------------------------------------------------------- numbers and layout


@pytest.mark.parametrize("what", TABLES)
def test_the_papers_own_numbers_differ_from_the_paper_by_nothing(what, table, published_runs):
    rows = table(what, "--runs-dir", published_runs)
    assert len(rows) == sum(
        len(row) for block, b in PUBLISHED[what].items() if block != "columns" for row in b.values()
    )
    for x in rows:
        column = PUBLISHED[what]["columns"].index(x["column"])
        wanted = PUBLISHED[what][x["block"]][x["row"]][column]
        assert float(x["paper"]) == wanted and x["table"] == what
        runs = "6" if x["block"] in (MEAN, DEVIATION) else "2" if what in ("table6", "table8") else "1"
        assert x["runs"] == x["runs_wanted"] == ("1" if x["row"] == "teacher" else runs)
        rough = 0.2 if what == "table8" and x["column"].endswith("(B)") else 0.1  # whole examples, as few as 68
        assert float(x["difference"]) == pytest.approx(0, abs=rough + 1e-9), x
        assert float(x["difference"]) == pytest.approx(float(x["ours"]) - wanted, abs=1e-3)
        assert bool(x["deviation"]) == (x["block"] == MEAN)
        if x["deviation"] and x["column"] != "avg":
            assert float(x["deviation"]) == pytest.approx(PUBLISHED[what][DEVIATION][x["row"]][column], abs=0.1)


def test_the_printed_table_has_the_papers_layout(published_runs, capsys):
    assert main(["table4", "--model", "gpt2", "--runs-dir", str(published_runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line for line in lines if line and line[0] != " " and "ours" not in line]
    assert titles == [PLAIN, LEFT_TO_RIGHT.replace(",", " > "), RIGHT_TO_LEFT.replace(",", " > ")]
    heads = [line.split() for line in lines if line.endswith("avg")]
    assert heads == [PUBLISHED["table4"]["columns"]] * 3
    (start,) = [i for i, line in enumerate(lines) if line.startswith("Multi QA+LM")]
    assert lines[start].split() == "Multi QA+LM ours 49.5 65.2 66.7 73.4 74.6 65.9".split()
    assert lines[start + 1].split() == "paper 49.5 65.2 66.7 73.4 74.6 65.9".split()
    assert [abs(float(x)) for x in lines[start + 2].split()[1:]] == [0.0] * 6
    assert main(["table3", "--runs-dir", str(published_runs)]) == 0
    assert re.search(r"LAMOL +ours +77\.8 ± 6\.0 +27\.0 ± 0\.7 +60\.1 ± 3\.2 ", capsys.readouterr().out)


@pytest.mark.parametrize("what", [*TABLES, "claims"])
def test_markdown_rows_have_the_cells_of_their_head(what, tmp_path, capsys):
    assert main([what, "--markdown", "--runs-dir", str(tmp_path)]) == 0
    blocks = [block.splitlines() for block in capsys.readouterr().out.strip().split("\n\n")]
    for head, rule, *rows in blocks:
        assert set(rule) <= set("| -") and rows and all(line[0] == line[-1] == "|" for line in (head, rule, *rows))
        assert {line.count("|") for line in (head, rule, *rows)} == {head.count("|")}
    published = {} if what == "claims" else {b: rows for b, rows in PUBLISHED[what].items() if b != "columns"}
    assert sum(len(rows) for _, _, *rows in blocks) == (sum(map(len, published.values())) or 8)
    titles = [block if block in (MEAN, DEVIATION) else block.replace(",", " → ") for block in published]
    assert [block[0][2:].split(" | ")[0] for block in blocks] == (titles or ["claim"])


def test_tables_6_and_8_have_two_decimals_as_printed(published_runs, capsys):
    assert main(["table6", "--markdown", "--runs-dir", str(published_runs)]) == 0
    cells = " / ".join((r"\| 77\.\d\d", r"77\.11", r".\d\.\d\d \| 90\.\d\d", r"90\.26", r".\d\.\d\d \|"))
    assert re.search(rf"^\| Word-KD {cells}", capsys.readouterr().out, re.M)


def test_several_seeds_give_mean_and_sample_deviation(tmp_path, table, capsys):
    for seed, score in ((0, 40.0), (1, 43.0), (2, 49.0)):
        finish(tmp_path, RunKey(RIGHT_TO_LEFT, "Seq-KD", seed), same(RIGHT_TO_LEFT, score))
    one = at(table("table4", "--seeds", "0,1,2", "--runs-dir", tmp_path, missing=True), "Seq-KD", "e2e", RIGHT_TO_LEFT)
    assert (one["ours"], one["runs"], one["runs_wanted"]) == ("44.0", "3", "3")
    assert float(one["deviation"]) == pytest.approx(stdev([40, 43, 49]), abs=1e-4)
    shown = {"0,1,2": "44.0 ± 4.6", "0,1,5": r"41.5 ± 2.1\*", "0,5": r"40.0\*", "1,1": "43.0"}
    for seeds, ours in shown.items():
        assert main(["table4", "--model", "gpt2", "--seeds", seeds, "--runs-dir", str(tmp_path)]) == 0
        assert re.search(rf"Seq-KD +ours +{ours} ", out := capsys.readouterr().out.split("rnnlg.laptop > ")[1])
    assert re.search(r"Seq-KD +ours +43\.0 .+\n +paper +49\.7 .+\n +difference +-6\.7 ", out)  # 43 of seed 1


def test_deviation_over_orders_is_that_of_the_means_over_seeds(tmp_path, table):
    for i, order in enumerate(ORDERS):
        for seed in (0, 1):
            last = {"woz": 10.0 * i + 30 * seed, "cnn": 20.0, "sql": 5.0 * i}
            finish(tmp_path, RunKey(order, "Word-KD", seed), last)
    rows = table("table3", "--seeds", "0,1", "--runs-dir", tmp_path, missing=True)
    assert at(rows, "Word-KD", "woz", MEAN)["ours"] == "40.0" and at(rows, "Word-KD", "sql", MEAN)["ours"] == "12.5"
    spread = stdev([0, 10, 20, 30, 40, 50])
    for column, wanted in (("woz", spread), ("cnn", 0), ("sql", spread / 2), ("avg", spread / 2)):
        one = at(rows, "Word-KD", column, DEVIATION)
        assert float(one["ours"]) == pytest.approx(wanted, abs=1e-4) and one["runs"] == one["runs_wanted"] == "12"


def test_single_models_are_scored_at_their_own_stage_and_the_others_at_the_end(tmp_path, table):
    last = {"woz": 81.0, "sql": 62.0, "cnn": 23.0}
    labels = ("Single QA+LM", "Multi long QA+LM", "LAMOL")
    for label in labels:
        finish(tmp_path, RunKey("woz,sql,cnn", label, 0), last, epochs=2)
    rows = table("table3", "--runs-dir", tmp_path, missing=True)
    for label in labels:
        block = MEAN if label == "LAMOL" else PLAIN
        assert {c: float(at(rows, label, c, block)["ours"]) for c in ("woz", "sql", "cnn")} == last
        assert float(at(rows, label, "avg", block)["ours"]) == pytest.approx(mean(last.values()), abs=1e-3)


# ---------------------------------------------------------------------- runs that are missing or broken


def test_what_is_missing_is_a_dash_and_counted(tmp_path, capsys):
    for what in TABLES:
        assert main([what, "--model", "gpt2", "--runs-dir", str(tmp_path)]) == 0
        printed = capsys.readouterr()
        ours = [line for line in printed.out.splitlines() if " ours " in line]
        assert ours and all(set(line.split(" ours ")[1].split()) == {"–"} for line in ours)
        assert f"0 of {RUNS[what]} runs found in {tmp_path}" in printed.err and printed.err.count("\n") == 1
    assert main(["claims", "--runs-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("\n    holds  –") == 8


def test_numbers_that_lack_runs_are_marked(tmp_path, table, capsys):
    for i, order in enumerate(ORDERS[:3]):
        finish(tmp_path, RunKey(order, "LAMOL", 0), {"woz": 60.0 + i, "cnn": 20.0, "sql": 50.0 - 2 * i})
        rows = table("table3", "--runs-dir", tmp_path, missing=True)
        assert at(rows, "LAMOL", "woz", MEAN)["runs"] == at(rows, "LAMOL", "woz", DEVIATION)["runs"] == str(i + 1)
        assert bool(at(rows, "LAMOL", "woz", DEVIATION)["ours"]) == (i > 0)  # of one order there is none
    assert main(["table3", "--runs-dir", str(tmp_path)]) == 0
    means, deviations = capsys.readouterr().out.split(DEVIATION)
    assert re.search(r"LAMOL +ours +61\.0 ± 1\.0\* +20\.0 ± 0\.0\* +48\.0 ± 2\.0\* +43\.0 ± 0\.3\*\n", means)
    assert re.search(r"LAMOL +ours +1\.0\* +0\.0\* +2\.0\* +1\.0\*\n", deviations)  # Avg: the mean of the three
    rows = table("claims", "--runs-dir", tmp_path, missing=True)
    assert [(x["ours"], x["holds in ours"]) for x in rows] == [("–", "–")] * 8
    for label in claims.DISTILLED:
        finish(tmp_path, RunKey(ORDERS[0], label, 0), {"woz": 70.0, "cnn": 30.0, "sql": 50.0})
    (first, *rest) = table("claims", "--runs-dir", tmp_path, missing=True)
    assert (first["ours"], first["holds in ours"]) == ("LAMOL 43.0; 50.0, 50.0, 50.0*", "yes")
    assert [x["ours"][-1] for x in rest] == list("––––––*")


def test_a_run_that_has_not_finished_is_not_collected_and_a_broken_one_is_named(tmp_path, table, capsys):
    folder = finish(tmp_path, RunKey(LEFT_TO_RIGHT, "LAMOL", 0), same(LEFT_TO_RIGHT, 50.0))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").unlink()
    assert at(table("table4", "--runs-dir", tmp_path, missing=True), "LAMOL", "avg", LEFT_TO_RIGHT)["ours"] == ""
    one_stage = summary | {"scores": {"5": {"e2e": 1.0}}}
    for broken in ("{", "[]", "{}", '{"order": 3}', json.dumps(one_stage)):
        (folder / "summary.json").write_text(broken)
        assert str(folder / "summary.json") in fails(capsys, "table4", "--model", "gpt2", "--runs-dir", tmp_path)
    (folder / "summary.json").write_text(json.dumps(summary))
    for broken in ("{", "", "[]\n", '{"stage": 1}\n', None):
        file = folder / "scores.jsonl"
        file.unlink() if broken is None else file.write_text(broken)
        assert str(file) in fails(capsys, "figure4", "--model", "gpt2", "--runs-dir", tmp_path)
    other = finish(tmp_path, RunKey(ORDERS[0], "LAMOL", 0), same(ORDERS[0], 1.0))
    shutil.copy(folder / "summary.json", other)  # of other tasks
    finish(tmp_path, RunKey(ORDERS[1], "LAMOL", 0), same(ORDERS[1], 1.0))
    assert "LAMOL runs of one row have scores of different tasks" in fails(capsys, "table3", "--runs-dir", tmp_path)
    (folder / "config.json").write_text("{")
    assert str(folder / "config.json") in fails(capsys, "table4", "--model", "gpt2", "--runs-dir", tmp_path)


# ---------------------------------------------------------------------- the same data


@pytest.mark.parametrize("what", ["table2", "table3", "figure3", "claims"])
def test_runs_on_other_data_are_refused_in_a_table(what, tmp_path, capsys):
    order = FIGURES["figure3"]
    for label in ("LAMOL", "Word-KD", "Seq-KD"):
        finish(tmp_path, RunKey(order, label, 0), same(order, 50.0))
    other = finish(tmp_path, RunKey(order, "finetune", 0), same(order, 50.0))
    assert main([what, "--csv", "--runs-dir", str(tmp_path)]) == 0
    config = json.loads((other / "config.json").read_text())
    for data in ({"woz": "0", "sql": "1", "cnn": "0"}, {"woz": "0", "cnn": "0"}, None):
        (other / "config.json").write_text(json.dumps(config | {"data": data}))
        for options in ([], ["--run"]):  # before anything is run
            line = fails(capsys, what, "--runs-dir", tmp_path, *options)
            assert ("task sql" if data else "task woz") in line and "delete" in line
            assert f"than in {tmp_path}" in line.split(str(other))[1] or f"but {other} did not record" in line
            assert ("has other data" in line) == bool(data and "sql" in data)


def test_runs_on_the_same_data_may_lie_in_two_folders_and_of_other_data_not(tmp_path, table, capsys):
    order = FIGURES["figure3"]
    finish(tmp_path / "runs", RunKey(order, "LAMOL", 0), same(order, 50.0))
    kept = finish(tmp_path / "kept", RunKey(order, "Seq-KD", 0), same(order, 50.0))
    both = ["table2", "--runs-dir", tmp_path / "runs", "--keep", tmp_path / "kept"]
    assert len([x for x in table(*both, missing=True) if x["ours"]]) == 2 * 4
    shutil.rmtree(kept)
    finish(tmp_path / "kept", RunKey(order, "Seq-KD", 0), same(order, 50.0), data="1")
    assert "task woz has other data in" in fails(capsys, *both)


def test_runs_that_did_not_record_their_data_make_a_table_with_a_note(tmp_path, capsys):
    order = FIGURES["figure3"]
    for label in ("LAMOL", "Word-KD"):
        folder = finish(tmp_path, RunKey(order, label, 0), same(order, 50.0))
        (folder / "config.json").write_text("{}") if label == "LAMOL" else (folder / "config.json").unlink()
    assert main(["table2", "--runs-dir", str(tmp_path)]) == 0
    assert "note: 2 of 2 runs did not record their data\n" in capsys.readouterr().err


# ---------------------------------------------------------------------- copies of the small files


def test_a_run_is_taken_from_where_runs_are_made_before_its_copy_is(tmp_path, capsys):
    key, runs, kept = RunKey(CLASSES, "LAMOL", 0), tmp_path / "runs", tmp_path / "kept"
    run = finish(runs, key, same(CLASSES, 50.0))
    copy_small_files(run, kept / run.name)
    summary = kept / run.name / "summary.json"
    summary.write_text(summary.read_text().replace("50.0", "99.0"))
    for runs_dir, keep, ours in ((runs, kept, "50.0"), (kept, runs, "99.0"), (tmp_path, kept, "99.0")):
        assert main(["table5", "--runs-dir", str(runs_dir), "--keep", str(keep)]) == 0
        assert re.search(rf"LAMOL +ours +{ours} ", capsys.readouterr().out)


@pytest.mark.parametrize("what", ["table3", "table8"])
def test_each_run_is_read_once_though_several_rows_need_it(what, tmp_path, monkeypatch):
    read, (rows, result) = [], EXPERIMENTS[what]

    def counted(run):
        read.append(run)
        return result(run)

    monkeypatch.setitem(EXPERIMENTS, what, Experiment(rows, counted))
    for key in keys_of(what, [0]):
        folder = finish(tmp_path, key, same(key.order, 50.0))
        if what == "table8":
            answer(folder, 5, {task: [True] for task in CLASSES.split(",")})
    assert main([what, "--runs-dir", str(tmp_path)]) == 0
    assert len(read) == len(set(read)) == RUNS[what]
