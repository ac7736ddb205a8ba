"""The three raw formats, real and made here. python -m pytest tests/test_prepare.py"""

import csv
import hashlib
import io
import json
import tarfile

import pytest
import torch

from data import load_task
from lab import prepare as prepare_file
from lab.prepare import DataError, prepare, read_jsonl, sql_row, story, subsample


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    """The three tasks as prepared from the data pack, which is left as it was."""
    before = {p: p.stat().st_mtime_ns for p in (shared / "data").rglob("*")}
    cache = tmp_path_factory.mktemp("cache")
    tasks = {name: load_task(name, shared / "data", cache) for name in ("woz", "sql", "cnn")}
    assert {p: p.stat().st_mtime_ns for p in (shared / "data").rglob("*")} == before
    return tasks


def test_counts_are_those_of_the_data_pack(real):
    assert {name: (len(t.train), len(t.test)) for name, t in real.items()} == {
        "woz": (2536, 1646),
        "sql": (1542, 2660),
        "cnn": (80, 20),
    }


def test_woz_texts_are_the_released_ones(real, golden):
    contexts = {e.context for e in real["woz"].train + real["woz"].test}
    texts = [case for case in golden("format")["text_cases"] if case["name"].startswith("woz")]
    assert texts and all(case["context"] in contexts for case in texts)
    answers = {e.meta["turn"]: e.answer for e in real["woz"].test}
    checked = 0
    for case in golden("dsem")["sets"]:
        if case["name"] in ("gold_as_pred", "all_None", "mixed_low", "mixed_high", "format_only"):
            for turn in case["turns"]:
                assert answers[turn["dialogue_turn"]] == turn["gold"]
                checked += 1
    assert checked > 1000


def test_woz_survives_its_traps(real):
    """Empty acts, strings and pairs as acts, blanks, several requests, nothing changed; the state decides, not the
    label (they disagree in dialogue 11, turn 3)."""
    by_turn = {e.meta["turn"]: e for e in real["woz"].train}
    assert by_turn["en_0_0"].context == "Are there any eritrean restaurants in town?"
    paired = next(e for e in by_turn.values() if e.context.startswith("area: dontcare -- No thank you."))
    assert paired.answer == "food: italian;" and "  " not in paired.context
    assert any(e.answer.count(",") > 1 and e.answer.startswith(";") for e in by_turn.values())
    assert sum(e.answer == "None" for e in by_turn.values()) > 500
    assert "area" not in by_turn["en_11_3"].answer
    assert {e.question for e in by_turn.values()} == {"What is the change in state?"}


def test_sql_texts_are_the_released_ones(real, golden):
    checked = 0
    for case in golden("lfem")["sets"]:
        for e in case["examples"]:
            row = sql_row({"sql": e["sql"], "table_id": 0, "question": "Who?"}, {0: e["header"]})
            assert row["answer"] == " ".join(e["answer"].lower().split())
            checked += 1
    assert checked > 1000
    wanted = next(c for c in golden("format")["text_cases"] if c["name"] == "wikisql_1")
    head, tail = wanted["context"].split(" and key words ")
    header = head.removeprefix("the table has columns ").split(", ")
    form = {"sel": 2, "agg": 1, "conds": [[3, 0, "George Nicula"], [1, 2, 9]]}
    row = sql_row({"sql": form, "table_id": 0, "question": tail.split("-- ")[1]}, {0: header})
    assert {key: row[key] for key in ("context", "question", "answer")} == {
        "context": wanted["context"],
        "question": wanted["question"],
        "answer": wanted["answers"][0],
    }


def test_sql_is_lower_case_and_keeps_logical_form_and_header(real):
    for e in real["sql"].train + real["sql"].test:
        assert e.context == e.context.lower() and e.answer == e.answer.lower() and "  " not in e.context
        assert set(e.meta["sql"]) == {"sel", "conds", "agg"} and e.meta["sql"]["sel"] < len(e.meta["header"])
    kinds = {type(value) for e in real["sql"].test for *_, value in e.meta["sql"]["conds"]}
    assert kinds == {str, int, float}
    assert any(not e.meta["sql"]["conds"] and " where " not in e.answer for e in real["sql"].test)


def test_cnn_csv_and_jsonl_give_the_same_rows(shared, real, tmp_path):
    """The pack's csv, quoted line breaks and all, read as the public train.csv would be."""
    folder = tmp_path / "cnn_dailymail"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_bytes((shared / "data/cnn_dailymail/sample.csv").read_bytes())
    task = load_task("cnn", tmp_path, tmp_path / "cache")
    assert len(task.train) == 100 and all("\n" not in e.answer for e in task.train)
    rows = {e.id: e for e in task.train}
    for e in real["cnn"].train + real["cnn"].test:
        assert (rows[e.id].context, rows[e.id].answer) == (e.context, e.answer)


# ---------------------------------------------------------------------- public archives, made here


def tar(path, mode, members):
    with tarfile.open(path, mode) as archive:
        for name, text in members.items():
            raw = text.encode()
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))


TABLE = json.dumps({"id": "t-1", "header": ["Player", "No."], "types": ["text", "text"], "rows": []})
QUESTION = json.dumps({"table_id": "t-1", "question": "Who is 7?", "sql": {"sel": 0, "conds": [[1, 0, 7]], "agg": 0}})


def test_wikisql_is_read_from_its_archive_without_unpacking_it(tmp_path):
    (tmp_path / "wikisql").mkdir()
    members = {"../../evil.txt": "x", "/evil.txt": "x"}
    for split in ("train", "dev", "test"):
        members |= {f"data/{split}.jsonl": QUESTION, f"data/{split}.tables.jsonl": TABLE}
    tar(tmp_path / "wikisql" / "data.tar.bz2", "w:bz2", members)
    task = load_task("sql", tmp_path, tmp_path / "cache")
    assert [e.answer for e in task.train] == ["select player from table where no. = 7"]
    assert not list(tmp_path.rglob("evil*"))
    (tmp_path / "wikisql" / "data.tar.bz2").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="not a whole archive"):
        load_task("sql", tmp_path, tmp_path / "cache")


def test_more_rows_than_table_1_counts_are_subsampled(tmp_path, monkeypatch):
    monkeypatch.setitem(prepare_file.TABLE_1, "sql", (5, 50))
    (tmp_path / "wikisql").mkdir()
    for split in ("train", "test"):
        (tmp_path / "wikisql" / f"{split}.tables.jsonl").write_text(TABLE)
        (tmp_path / "wikisql" / f"{split}.jsonl").write_text((QUESTION.strip() + "\n") * 20)
    task = load_task("sql", tmp_path, tmp_path / "cache")
    wanted = [n for n, _ in subsample([(n, None) for n in range(1, 21)], 5)]
    assert [e.id for e in task.train] == [f"train-{n}" for n in wanted] != [f"train-{n}" for n in range(1, 6)]
    assert len(task.test) == 20


def test_cnn_is_streamed_from_its_story_archives(tmp_path):
    folder = tmp_path / "cnn_dailymail"
    folder.mkdir()
    urls = {"train": ["http://a/1", "http://b/2"], "test": ["http://b/3"]}
    names = {url: hashlib.sha1(url.encode()).hexdigest() for split in urls.values() for url in split}
    for split, chosen in urls.items():
        (folder / f"all_{split}.txt").write_text("\n".join(chosen) + "\n")
    text = "(CNN) -- It rained\n\nA lot.\n\n@highlight\n\nRain {}\n\n@highlight\n\nIt was wet .\n"
    tar(
        folder / "cnn_stories.tgz", "w:gz", {f"cnn/stories/{names['http://a/1']}.story": text.format(1), "x.story": "x"}
    )
    members = {f"dailymail/stories/{names[u]}.story": text.format(u[-1]) for u in ("http://b/2", "http://b/3")}
    tar(folder / "dailymail_stories.tgz", "w:gz", members)
    task = load_task("cnn", tmp_path, tmp_path / "cache")
    assert [(e.id, e.answer) for e in task.train] == [
        (names["http://a/1"], "Rain 1 . It was wet ."),
        (names["http://b/2"], "Rain 2 . It was wet ."),
    ]
    assert task.test[0].context == "(CNN) -- It rained . A lot."
    (folder / "all_test.txt").write_text("http://nowhere/4\n")
    with pytest.raises(DataError, match="1 of its stories are in neither archive"):
        load_task("cnn", tmp_path, tmp_path / "cache")


def test_a_story_without_highlights_has_an_empty_summary():
    assert story("Only text") == {"context": "Only text .", "question": "What is the summary?", "answer": ""}


# ---------------------------------------------------------------------- files


def woz_files(tmp_path, raw):
    (tmp_path / "woz").mkdir(exist_ok=True)
    for split in ("train", "test"):
        (tmp_path / "woz" / f"woz_{split}_en.json").write_bytes(raw)


GOOD = json.dumps([{"dialogue": [{"system_acts": [], "transcript": "hi", "belief_state": []}]}]).encode()


@pytest.mark.parametrize(
    "raw, says",
    [
        (b"", "empty, cut off or not JSON"),
        (GOOD[:-5], "empty, cut off or not JSON"),
        (b'{"a": 1}', "a JSON list of dialogues"),
        (b"[]", "a JSON list of dialogues"),
        (b'[{"dialogue": [{"transcript": "hi"}]}]', "dialogue 0: not a row"),
        (b'[{"dialogue": "\xe9"}]', "line 1: not UTF-8"),
        (b"[" * 100000, "not JSON"),
    ],
)
def test_a_broken_raw_file_is_named_and_nothing_is_left(tmp_path, raw, says):
    woz_files(tmp_path, raw)
    with pytest.raises(DataError, match=says) as e:
        prepare("woz", tmp_path, tmp_path / "cache")
    assert "woz_train_en.json" in str(e.value)
    assert not list((tmp_path / "cache").rglob("*.jsonl"))


def test_prepared_files_are_keyed_by_their_raw_files(tmp_path):
    woz_files(tmp_path, GOOD)
    one = prepare("woz", tmp_path, tmp_path / "cache")
    stamp = (one / "train.jsonl").stat().st_mtime_ns
    assert prepare("woz", tmp_path, tmp_path / "cache") == one and (one / "train.jsonl").stat().st_mtime_ns == stamp
    woz_files(tmp_path, GOOD.replace(b"hi", b"ho"))
    other = prepare("woz", tmp_path, tmp_path / "cache")
    assert other != one and read_jsonl(other / "train.jsonl")[0]["context"] == "ho"


def test_half_a_data_set_is_an_error_and_not_a_download(tmp_path):
    (tmp_path / "cnn_dailymail").mkdir()
    (tmp_path / "cnn_dailymail" / "train.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"test\.jsonl is missing"):
        prepare("cnn", tmp_path, tmp_path / "cache")


def test_a_download_has_its_checksum_and_its_place(tmp_path, monkeypatch):
    asked = []

    def fetch(url, path, hash_prefix=None):
        asked.append((url, hash_prefix))
        with open(path, "wb") as f:
            f.write(GOOD)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    prepare("woz", tmp_path, tmp_path / "cache")
    assert asked == list(prepare_file.SOURCES["woz"][1].values())
    assert all(url.startswith("https://") and len(digest) == 64 for url, digest in asked)
    prepare("woz", tmp_path, tmp_path / "cache")
    assert len(asked) == 2  # once


def test_the_pinned_checksums_are_those_of_the_known_public_files(shared):
    sources = json.loads((shared / "paper" / "sources.json").read_text())
    assert prepare_file.SOURCES["sql"][1]["data.tar.bz2"] == (sources["wikisql"]["url"], sources["wikisql"]["sha256"])
    ours = set(prepare_file.SOURCES["cnn"][1].values())
    theirs = [*sources["cnn_dailymail"]["stories"], *sources["cnn_dailymail"]["lists"].values()]
    assert ours == {(source["url"], source["sha256"]) for source in theirs}
    for name, (_, digest) in prepare_file.SOURCES["woz"][1].items():
        assert prepare_file.sha256(shared / "data" / "woz" / name) == digest


def test_a_subsample_is_fixed_sorted_and_of_the_asked_size():
    rows = list(range(100))
    assert subsample(rows, 100) == rows == subsample(rows, 1000)
    some = subsample(rows, 10)
    assert len(some) == 10 and some == sorted(set(some)) == subsample(rows, 10)


def test_a_broken_csv_is_named(tmp_path):
    (tmp_path / "cnn_dailymail").mkdir()
    for split in ("train", "test"):
        with open(tmp_path / "cnn_dailymail" / f"{split}.csv", "w", newline="") as f:
            csv.writer(f).writerows([["id", "article"], ["1", "text"]])
    with pytest.raises(DataError, match=r"train\.csv, line 2: not a row of id,article,highlights"):
        prepare("cnn", tmp_path, tmp_path / "cache")
