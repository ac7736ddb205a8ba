"""What the paper's text claims: it holds in its own numbers, and numbers against it deny it.

python -m pytest tests/test_claims.py"""

import json
import re

import pytest
from paper_runs import as_published, finish, rows_of

from lab.paper import claims
from lab.paper.claims import RIGHT_TO_LEFT, claims_table
from lab.paper.experiments import DEVIATION, MEAN, PLAIN, cells_of, keys_of, orders_of
from lab.paper.runs import RunKey, found

ORDERS = orders_of("table2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return as_published(tmp_path_factory.mktemp("published"), ["claims"])


@pytest.fixture(scope="module")
def cells(runs):
    return cells_of("claims", found(keys_of("claims", [0]), [runs], []), [0])


def test_every_claim_holds_in_the_papers_own_numbers(runs, capsys):
    rows = rows_of(capsys, "claims", "--runs-dir", runs)
    assert [x["claim"] for x in rows] == list(claims.CLAIMS) and len(rows) == 8
    assert [x["holds in ours"] for x in rows] == ["yes"] * 8
    numbers = re.compile(r"[-+]?\d+(?:\.\d+)?")
    for x in rows:
        if x["paper"] != "–":
            assert numbers.sub("N", x["paper"]) == numbers.sub("N", x["ours"]) and "*" not in x["ours"]
            paper, ours = ([float(n) for n in numbers.findall(x[side])] for side in ("paper", "ours"))
            assert ours == pytest.approx(paper, abs=0.1 + 1e-9), x
    assert [x["paper"] == "–" for x in rows] == [False, False, False, True, True, False, False, True]
    assert "LAMOL 54.9; 57.0, 57.1, 56.5" in rows[0]["paper"] and "LAMOL 3.3; 2.1, 1.9, 2.5" in rows[1]["paper"]
    assert rows[3]["ours"].startswith("2")
    assert rows[4]["ours"] == "LAMOL +16.0, Word-KD +17.0, Seq-KD_soft +18.0, Seq-KD +19.0"
    assert rows[7]["ours"] == "1.5, 1.6, 1.7 times LAMOL's, teachers included; the same model size"


@pytest.mark.parametrize(
    "number, where, ours",
    [
        (0, ("table3", MEAN, "Seq-KD", "avg"), 54.0),
        (1, ("table3", DEVIATION, "Word-KD", "avg"), 3.5),
        (2, ("table2", None, "Word-KD", "cnn"), 40.0),  # None: in every block
        (2, ("table2", None, "Seq-KD", None), 99.0),
        (2, ("table2", None, None, "sql"), 50.0),  # equal is not before: 9 of 24
        (2, ("table2", ORDERS[0], "Word-KD", "cnn"), 28.0),  # in every order
        (3, ("figure3", None, "Seq-KD", None), 99.0),
        (3, ("figure3", "sql", "Seq-KD", None), 99.0),  # the second stage counts as the first does
        (4, ("figure4", "rnnlg.hotel", "Word-KD", 6), 99.0),
        (4, ("figure4", "rnnlg.hotel", "LAMOL", 6), 0.0),
        (5, ("table4", RIGHT_TO_LEFT, "LAMOL", "avg"), 65.8),
        (5, ("table4", PLAIN, "Multi QA", "avg"), 66.8),
        (6, ("table6", "all", "Seq-KD", "teacher right (A)"), 88.0),
        (6, ("table6", "all", "Seq-KD", "teacher wrong (B)"), 40.0),
        (6, ("table6", "all", "Word-KD", "teacher right (A)"), 88.0),
        (7, ("cost", "seconds", "Word-KD", ""), 201.0),
        (7, ("cost", "parameters", "Seq-KD", ""), 2e6),
    ],
)
def test_a_claim_is_denied_by_numbers_against_it(number, where, ours, cells):
    hit = [all(w in (None, x) for w, x in zip(where, cell[:4])) for cell in cells]
    changed = [cell._replace(ours=[ours]) if there else cell for cell, there in zip(cells, hit)]
    assert any(hit) and claims_table(changed)[number][3] == "no"


def test_gains_of_groups_weigh_as_much_as_the_groups(cells):
    """(B) may gain more than (A) and add less to the total: it is less than a quarter of the examples."""
    place = ("table6", "all", "Word-KD", "teacher wrong (B)")
    changed = [cell._replace(ours=[36.0]) if cell[:4] == place else cell for cell in cells]
    assert claims_table(changed)[6][3] == "yes"


def test_runs_of_earlier_versions_without_times_have_no_costs(tmp_path, capsys):
    for label in ("LAMOL", *claims.DISTILLED):
        folder = finish(tmp_path, RunKey(ORDERS[0], label, 0), {"woz": 1.0, "cnn": 2.0, "sql": 3.0})
        summary = json.loads((folder / "summary.json").read_text())
        del summary["teacher_time_here_s"]
        (folder / "summary.json").write_text(json.dumps(summary))
    assert rows_of(capsys, "claims", "--runs-dir", tmp_path, missing=True)[7]["ours"] == "–"
    finish(tmp_path, RunKey(ORDERS[1], "LAMOL", 0), {"woz": 1.0, "cnn": 2.0, "sql": 3.0})
    there = found(keys_of("cost", [0]), [tmp_path], [])
    cell = next(cell for cell in cells_of("cost", there, [0]) if cell[1:3] == ("seconds", "LAMOL"))
    assert (cell.ours, cell.runs, cell.wanted) == ([100.0], 1, 6) and len(there) == 5
