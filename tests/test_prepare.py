"""The readers of all thirteen data sets, on the real data pack and on small files made here.

python -m pytest tests/test_prepare.py"""

import csv
import gzip
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import tracemalloc
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from data import METRICS, Example, Task, load_task
from eval import parse_state, rouge_scores, score
from lab import prepare as prepare_file
from lab.prepare import CLASSES, SPLITS, TABLE_1, DataError, main, prepare, read_jsonl, sql_row, story, subsample

COUNTS = {  # what the data pack holds, at most as many as Table 1 counts
    "woz": (2536, 1646),
    "sql": (1542, 2660),
    "cnn": (80, 20),
    "e2e": (4672, 2000),
    "rnnlg.rest": (6228, 1039),
    "rnnlg.hotel": (6446, 1075),
    "rnnlg.tv": (8442, 1407),
    "rnnlg.laptop": (7944, 2649),
    "ag": (6600, 1000),
}
DOMAINS = {"rnnlg.rest": "restaurant", "rnnlg.hotel": "hotel", "rnnlg.tv": "tv", "rnnlg.laptop": "laptop"}


class Real(NamedTuple):
    """The data pack as prepared: its tasks, what was printed, and its files with their times before and after."""

    tasks: dict[str, Task]
    said: list[str]
    before: dict
    after: dict


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    pack, cache, said = shared / "data", tmp_path_factory.mktemp("cache"), io.StringIO()

    def times():
        return {path: path.stat().st_mtime_ns for path in pack.rglob("*")}

    before = times()
    with redirect_stdout(said):
        tasks = {name: load_task(name, pack, cache) for name in COUNTS}
    return Real(tasks, said.getvalue().splitlines(), before, times())


def both(task):
    return task.train + task.test


# ---------------------------------------------------------------------- the data pack: counts


def test_every_task_of_the_data_pack_has_its_counts(real):
    assert {name: (len(t.train), len(t.test)) for name, t in real.tasks.items()} == COUNTS
    assert set(TABLE_1) - set(COUNTS) == {"yelp", "amazon", "dbpedia", "yahoo"}
    assert {name: t.metric for name, t in real.tasks.items()} == {name: METRICS[name] for name in COUNTS}


def test_the_data_pack_is_left_as_it_was(real):
    assert real.before and real.after == real.before


def test_stand_ins_are_named_and_known_public_files_are_not(real):
    own = {line.split(":")[0]: line for line in real.said if "used as found" in line}
    assert set(own) == {"sql", "cnn", "e2e", "ag"} and len(real.said) == len(COUNTS) + len(own)
    assert "trainset.csv in" in own["e2e"] and "testset" not in own["e2e"]
    fewer = {line.split(":")[0] for line in real.said if line.endswith("(fewer: all that the files hold)")}
    assert fewer == set(own)
    assert "e2e: 4672 / 2000 examples; Table 1: 6000 / 2000 (fewer: all that the files hold)" in real.said
    assert "rnnlg.tv: 8442 / 1407 examples; Table 1: 8442 / 1407" in real.said


# ---------------------------------------------------------------------- the data pack: WOZ


def woz_turns(shared, split):
    dialogues = json.loads((shared / f"data/woz/woz_{split}_en.json").read_text(encoding="utf-8"))
    return [(f"en_{d}_{t}", turn) for d, one in enumerate(dialogues) for t, turn in enumerate(one["dialogue"])]


def test_woz_texts_are_the_released_ones(real, golden):
    contexts = {e.context for e in both(real.tasks["woz"])}
    texts = [case for case in golden("format")["text_cases"] if case["name"].startswith("woz")]
    assert texts and all(case["context"] in contexts for case in texts)
    answers = {e.meta["turn"]: e.answer for e in real.tasks["woz"].test}
    checked = 0
    for case in golden("dsem")["sets"]:
        if case["name"] in ("gold_as_pred", "all_None", "mixed_low", "mixed_high", "format_only"):
            for turn in case["turns"]:
                assert answers[turn["dialogue_turn"]] == turn["gold"]
                checked += 1
    assert checked > 1000


@pytest.mark.parametrize("split", SPLITS)
def test_woz_answers_accumulate_to_the_belief_state(shared, real, split):
    """A later value replaces the earlier one of its slot, and requests are those of the turn alone, in order."""
    turns, examples = woz_turns(shared, split), getattr(real.tasks["woz"], split)
    assert [e.meta["turn"] for e in examples] == [id for id, _ in turns]
    lost = 0
    for e, (id, turn) in zip(examples, turns):
        if id.endswith("_0"):
            state = {}
        informed, requests = parse_state(e.answer)
        state |= informed
        slots = [(item["act"], *slot) for item in turn["belief_state"] for slot in item["slots"]]
        belief = {slot: value for act, slot, value in slots if act == "inform"}
        assert [request for request in requests or [] if request] == [v for act, _, v in slots if act == "request"]
        assert belief.items() <= state.items()
        lost += state != belief  # a slot that the state drops again, which no change can say
    assert lost < len(turns) / 100


def test_woz_survives_its_traps(shared, real):
    """Empty acts, strings and pairs as acts, blanks, several requests, nothing changed."""
    train = dict(woz_turns(shared, "train"))
    by_turn = {e.meta["turn"]: e for e in real.tasks["woz"].train}
    kinds = Counter(type(act) for turn in train.values() for act in turn["system_acts"])
    assert kinds == {str: 576, list: 27}
    for id, e in by_turn.items():
        assert (" -- " in e.context) == bool(train[id]["system_acts"])
        assert e.context.endswith(" ".join(train[id]["transcript"].split()))
        assert e.context == " ".join(e.context.split()) and e.context.isascii()
        assert e.answer == "None" or e.answer == e.answer.lower()
    assert sum(turn["transcript"] != turn["transcript"].strip() for turn in train.values()) == 411
    assert by_turn["en_0_0"].context == "Are there any eritrean restaurants in town?"
    assert next(e for e in by_turn.values() if e.context.startswith("area: dontcare -- No thank you."))
    assert any(e.answer.count(",") > 1 and e.answer.startswith(";") for e in by_turn.values())
    assert sum(e.answer == "None" for e in by_turn.values()) > 500
    assert {e.question for e in by_turn.values()} == {"What is the change in state?"}


def test_the_state_decides_where_label_and_state_of_woz_disagree(shared, real):
    turns = dict(woz_turns(shared, "train"))
    assert ["area", "centre"] in turns["en_11_3"]["turn_label"]
    assert "area" not in next(e.answer for e in real.tasks["woz"].train if e.meta["turn"] == "en_11_3")
    blank = [id for id, turn in woz_turns(shared, "test") if ["price range", " expensive"] in turn["turn_label"]]
    answers = {e.meta["turn"]: e.answer for e in real.tasks["woz"].test}
    assert [answers[id] for id in blank] == ["; price range"]  # expensive it was before


# ---------------------------------------------------------------------- the data pack: WikiSQL


def sql_lines(shared, name):
    return (shared / "data" / "wikisql" / name).read_text(encoding="utf-8").rstrip("\n").split("\n")


def test_sql_texts_are_the_released_ones(golden):
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


@pytest.mark.parametrize(
    "split, bare, kinds, foreign, again",
    [("train", 11, (1404, 712, 95), 136, 4), ("test", 18, (2497, 1392, 173), 218, 5)],
)
def test_sql_survives_its_traps(shared, real, split, bare, kinds, foreign, again):
    """No conditions; values of three kinds; non-ASCII questions; repeated lines; the form and header as they are."""
    headers = {table["id"]: table["header"] for table in map(json.loads, sql_lines(shared, f"{split}.tables.jsonl"))}
    lines, examples = sql_lines(shared, f"{split}.jsonl"), getattr(real.tasks["sql"], split)
    for line, e in zip(map(json.loads, lines), examples, strict=True):
        question = " ".join(line["question"].lower().split())
        assert e.meta == {"sql": line["sql"], "header": headers[line["table_id"]]}
        assert e.context.endswith(f"question, agg, aggops, condops-- {question}")
        assert e.context.startswith(" ".join(f"the table has columns {', '.join(e.meta['header'])} ".lower().split()))
        assert e.context == " ".join(e.context.lower().split()) and e.answer == " ".join(e.answer.lower().split())
        values = [" ".join(str(value).lower().split()) for *_, value in line["sql"]["conds"]]
        assert all(value in question and value in e.answer for value in values)
        assert (" where " in e.answer) == bool(values)
    values = Counter(type(value) for e in examples for *_, value in e.meta["sql"]["conds"])
    assert values == dict(zip((str, int, float), kinds))
    assert sum(not e.meta["sql"]["conds"] for e in examples) == bare
    assert sum(not json.loads(line)["question"].isascii() for line in lines) == foreign
    assert len(lines) - len(set(lines)) == again
    assert max(len(e.meta["sql"]["conds"]) for e in examples) == 4


def test_sql_column_names_may_hold_commas_and_words_of_sql(real):
    names = {name for e in both(real.tasks["sql"]) for name in e.meta["header"]}
    assert all(any(character in name for name in names) for character in ",(/")
    assert {"From", "Date"} <= names and any(not name.isascii() for name in names)
    commas = next(e for e in real.tasks["sql"].test if any(", " in name for name in e.meta["header"]))
    assert ", ".join(commas.meta["header"]).lower() in commas.context
    assert not any("\xa0" in e.context + e.answer for e in both(real.tasks["sql"]))


# ---------------------------------------------------------------------- the data pack: CNN/DailyMail


@pytest.fixture(scope="module")
def cnn_csv(shared, tmp_path_factory):
    """The pack's sample read as the public train.csv would be, and its rows as the csv module sees them."""
    sample, folder = shared / "data/cnn_dailymail/sample.csv", tmp_path_factory.mktemp("cnn")
    (folder / "cnn_dailymail").mkdir()
    for split in SPLITS:
        (folder / f"cnn_dailymail/{split}.csv").symlink_to(sample)
    with open(sample, encoding="utf-8", newline="") as f:
        return load_task("cnn", folder, folder / "cache"), list(csv.DictReader(f))


def test_cnn_csv_and_jsonl_give_the_same_rows(real, cnn_csv):
    rows = {e.id: e for e in cnn_csv[0].train}
    assert len(rows) == 100
    for e in both(real.tasks["cnn"]):
        assert (rows[e.id].context, rows[e.id].answer) == (e.context, e.answer)


def test_cnn_survives_its_traps(cnn_csv):
    """Line breaks in quotes, articles of any length, boilerplate, curly quotes, pounds, no-break spaces."""
    task, rows = cnn_csv
    assert sum("\n" in row["highlights"] for row in rows) == 94
    for e, row in zip(task.train, rows, strict=True):
        article, highlights = (" ".join(row[column].split()) for column in ("article", "highlights"))
        assert (e.id, e.context, e.answer) == (row["id"], article, highlights)
    lengths = [len(e.context.split()) for e in task.train]
    assert (min(lengths), max(lengths)) == (151, 1677)  # nothing is cut here: that is for the tokens
    assert sum(e.context.startswith("By .") for e in task.train) == 29
    assert sum(e.answer.count("NEW:") for e in task.train) == 4
    raw, text = ("".join(x) for x in zip(*((r["article"], e.context) for r, e in zip(rows, task.train))))
    assert raw.count("\xa0") > 60 and "\xa0" not in text and set("’“£–") <= set(text)
    assert {e.question for e in task.train} == {"What is the summary?"}


# ---------------------------------------------------------------------- the data pack: E2E


@pytest.fixture(scope="module")
def e2e_raw(shared):
    """(mr, reference) of both files, split by hand: no field has a line break in it."""
    rows = {}
    for split, name in zip(SPLITS, ("trainset.csv", "testset_w_refs.csv")):
        text = (shared / "data/e2e" / name).read_bytes().decode("utf-8")
        fields = [re.fullmatch('("?)(.*?)\\1,("?)(.*)\\3', line.rstrip("\r")) for line in text.split("\n")[1:] if line]
        rows[split] = [(f[2], f[4].replace('""', '"')) for f in fields]
    return rows


def test_every_row_of_e2e_is_an_example_repeated_ones_too(real, e2e_raw):
    task = real.tasks["e2e"]
    assert [(e.context, e.answer) for e in task.train] == [(mr, ref.strip()) for mr, ref in e2e_raw["train"]]
    assert len(task.train) - len({(e.context, e.answer) for e in task.train}) == 151
    counts = Counter(e.context for e in task.train)
    assert (len(counts), min(counts.values()), max(counts.values())) == (547, 2, 43)
    assert len(e2e_raw["test"]) == 4693
    drawn = subsample([(mr, ref.strip()) for mr, ref in e2e_raw["test"]], 2000)
    assert [(e.context, e.answer) for e in task.test] == drawn
    assert not {e.context for e in task.train} & {e.context for e in task.test}
    assert {e.question for e in both(task)} == {"What is the natural language form?"}


def test_e2e_survives_its_traps(shared, real):
    train = real.tasks["e2e"].train
    raw = {name: (shared / "data/e2e" / name).read_bytes() for name in ("trainset.csv", "testset_w_refs.csv")}
    assert raw["trainset.csv"].count(b"\r\n") == 4673 and b"\r" not in raw["testset_w_refs.csv"]
    assert {c for e in both(real.tasks["e2e"]) for c in e.context + e.answer if not c.isascii()} == {"£", "é"}
    assert not any(c in e.context + e.answer for e in both(real.tasks["e2e"]) for c in "\r\n")
    assert train[2672].answer == "The Eagle coffee shop, serving"
    assert train[3753].answer.startswith('A highly rated coffee shop "The Punter" serving')
    assert sum("  " in e.answer for e in train) == 722  # inner blanks are the writers' own


def test_references_of_a_test_row_are_all_of_its_meaning_in_the_whole_file(real, e2e_raw):
    references = {}
    for mr, ref in e2e_raw["test"]:
        references.setdefault(mr, []).append(ref.strip())
    counts = Counter(map(len, references.values()))
    assert (len(references), min(counts), max(counts)) == (630, 1, 45)
    assert all(e.meta == {"references": references[e.context]} for e in real.tasks["e2e"].test)
    sampled = Counter(e.context for e in real.tasks["e2e"].test)
    assert sum(len(references[mr]) for mr in sampled) > 2 * sum(sampled.values())
    assert not any(e.meta for e in real.tasks["e2e"].train)


def test_multi_reference_counts_each_meaning_once_against_all_its_references(real):
    examples = real.tasks["e2e"].test[:60]
    task = Task("e2e", "rouge", [], examples)
    answers = {e.context: " ".join(e.answer.split()[:9]) for e in examples}  # one answer a meaning, as a model gives
    predictions = [answers[e.context] for e in examples]
    references = {e.context: e.meta["references"] for e in examples}
    assert len(references) < 60
    pooled = rouge_scores([answers[mr] for mr in references], list(references.values()))
    assert score(task, predictions, multi_reference=True) == pytest.approx({"score": pooled["rouge"], **pooled})
    single = rouge_scores(predictions, [e.answer for e in examples])
    assert score(task, predictions) == pytest.approx({"score": single["rouge"], **single})
    assert pooled != pytest.approx(single)


def test_questions_about_one_context_each_count_with_multi_reference():
    meta = {"references": ["red", "blue"]}
    test = [Example("c", question, "red", meta=meta) for question in ("q", "r")]
    assert (
        score(Task("own", "rouge", [], test), ["red", "nonsense"], True)["rouge1"] == 25.0  # 50 and 0
    )


def test_rows_without_several_references_each_count_with_multi_reference():
    examples = [Example("same", "q", answer) for answer in ("a b", "c d")]
    scores = score(Task("own", "rouge", [], examples), ["a b", "a b"], multi_reference=True)
    assert scores["score"] == pytest.approx(50)


# ---------------------------------------------------------------------- the data pack: RNNLG


@pytest.fixture(scope="module")
def rnnlg_raw(shared):
    """Task -> split -> [act, human, baseline] of all three files of a domain, the `#` lines left out."""
    raw = {}
    for task, domain in DOMAINS.items():
        raw[task] = {}
        for split in ("train", "valid", "test"):
            lines = (shared / f"data/rnnlg/{domain}/{split}.json").read_text(encoding="utf-8").split("\n")
            assert sum(line.startswith("#") for line in lines) == 5
            raw[task][split] = json.loads("\n".join(line for line in lines if not line.startswith("#")))
    return raw


@pytest.mark.parametrize("task", DOMAINS)
def test_rnnlg_trains_on_both_texts_but_for_laptop_and_tests_on_the_human_one(real, rnnlg_raw, task):
    kept = 1 if task == "rnnlg.laptop" else 2
    wanted = [(act.strip(), text.strip()) for act, *texts in rnnlg_raw[task]["train"] for text in texts[:kept]]
    assert [(e.context, e.answer) for e in real.tasks[task].train] == wanted
    wanted = [(act.strip(), human.strip()) for act, human, _ in rnnlg_raw[task]["test"]]
    assert [(e.context, e.answer) for e in real.tasks[task].test] == wanted
    assert len({e.id for e in both(real.tasks[task])}) == len(both(real.tasks[task]))
    assert {e.question for e in both(real.tasks[task])} == {"What is the natural language form?"}


def slots_of(act):
    return [slot for slot in act.partition("(")[2].removesuffix(")").split(";") if slot]


def repeats(act):
    names = [slot.partition("=")[0] for slot in slots_of(act)]
    return len(names) > len(set(names))


@pytest.mark.parametrize(
    "task, bare, valueless, repeated",
    [
        ("rnnlg.rest", 957, 703, 93),
        ("rnnlg.hotel", 1032, 554, 427),
        ("rnnlg.tv", 8, 0, 142),
        ("rnnlg.laptop", 4, 6, 397),
    ],
)
def test_acts_of_rnnlg_are_kept_verbatim(shared, tmp_path, real, task, bare, valueless, repeated):
    """`goodbye()`, `?request(area)` and `?select(a='yes';a='no')`, counted over training, validation and test."""
    folder = tmp_path / "rnnlg" / DOMAINS[task]
    folder.mkdir(parents=True)
    for split in SPLITS:
        (folder / f"{split}.json").symlink_to(shared / f"data/rnnlg/{DOMAINS[task]}/valid.json")
    valid = load_task(task, tmp_path, tmp_path / "cache").test
    train = [e for e in real.tasks[task].train if e.id.endswith("-human")]
    acts = [e.context for e in train + valid + real.tasks[task].test]
    assert all(re.fullmatch(r"\??\w+\(.*\)", act) for act in acts)
    assert sum(not slots_of(act) for act in acts) == bare
    assert sum(any("=" not in slot for slot in slots_of(act)) for act in acts) == valueless
    assert sum(map(repeats, acts)) == repeated


def test_rnnlg_survives_its_traps(real, rnnlg_raw):
    acts = {task: [e.context for e in real.tasks[task].train if e.id.endswith("human")] for task in DOMAINS}
    assert (acts["rnnlg.rest"].count("goodbye()"), acts["rnnlg.hotel"].count("goodbye()")) == (540, 562)
    assert [len(set(acts[task])) for task in DOMAINS] == [1372, 787, 4147, 7734]
    known = {task: set(acts[task]) for task in DOMAINS}
    assert [sum(e.context in known[task] for e in real.tasks[task].test) for task in DOMAINS] == [679, 968, 57, 204]
    outer = [sum(row[1] != row[1].strip() for row in rnnlg_raw[task]["train"]) for task in DOMAINS]
    assert outer == [1, 4, 641, 1]
    texts = [e.answer for task in DOMAINS for e in both(real.tasks[task])]
    assert all(text == text.strip() and text.isascii() for text in texts) and any(" -s" in text for text in texts)
    assert "?reqmore()" in acts["rnnlg.rest"] and "?request(area)" in acts["rnnlg.rest"]
    assert any("dont_care" in act for act in acts["rnnlg.rest"])
    assert any("dontcare" in act for act in acts["rnnlg.tv"])
    assert any(e.answer != e.answer.lower() for e in real.tasks["rnnlg.tv"].train if e.id.endswith("hdc"))


# ---------------------------------------------------------------------- the data pack: AG News


@pytest.fixture(scope="module")
def ag_public(shared, tmp_path_factory):
    """The whole public test file under its public name, what was printed, and its rows, split by hand."""
    pack, folder = shared / "data/ag_news", tmp_path_factory.mktemp("ag")
    (folder / "ag_news").mkdir()
    (folder / "ag_news/train.csv").symlink_to(pack / "train.csv")
    (folder / "ag_news/test.csv").symlink_to(pack / "public_test.csv")
    lines = (pack / "public_test.csv").read_text(encoding="utf-8").rstrip("\n").split("\n")
    fields = [re.fullmatch('"(.)","(.*?)","(.*)"', line).groups() for line in lines]
    with redirect_stdout(io.StringIO()) as said:
        task = load_task("ag", folder, folder / "cache")
    return task, said.getvalue(), fields


def test_ag_survives_its_traps(ag_public):
    """Doubled quotes, backslashes that escape nothing, left-over entities, outer blanks, class numbers from 1."""
    task, said, fields = ag_public
    assert len(task.test) == len(fields) == 7600 and "malformed" not in said
    names = ("World", "Sports", "Business", "Sci/Tech")
    for e, (label, title, text) in zip(task.test, fields):
        assert e.context == " ".join(f"{title} {text}".replace('""', '"').split())
        assert e.answer == names[int(label) - 1]
    assert Counter(e.answer for e in task.test) == dict.fromkeys(names, 1900)
    assert sum("\\" in e.context for e in task.test) == 808
    assert sum(bool(re.search(r"#\d+;", e.context)) for e in task.test) == 1991
    assert sum(bool(re.search(r"&[lg]t;", e.context)) for e in task.test) == 302
    assert any('"' in e.context for e in task.test) and not any('""' in e.context for e in task.test)
    assert sum(title != title.strip() or text != text.strip() for _, title, text in fields) == 1453
    assert len(set(fields)) == 7600 and all(e.context.isascii() and e.context for e in task.test)
    assert {e.question for e in task.test} == {"Is this World, Sports, Business or Sci/Tech?"}


def test_the_known_test_file_of_ag_is_known(ag_public):
    own = [line for line in ag_public[1].splitlines() if "used as found" in line]
    assert len(own) == 1 and "ag: train.csv in" in own[0] and own[0].endswith("not the known public file")


# ---------------------------------------------------------------------- small files in each raw format


class Raw(NamedTuple):
    """A raw format: the file of its training rows, a good row, malformed ones, and what stands around rows."""

    task: str
    path: str
    good: bytes  # with a number in it
    bad: tuple
    head: bytes = b""
    between: bytes = b"\n"


def classes(task, folder, columns):
    """A classification set: the class, then columns - 1 texts."""
    text = b',"a text"' * (columns - 2)
    bad = [
        b'"0","x"' + text, b'"%d","x"' % (len(CLASSES[task]) + 1) + text, b'"x","x"' + text, b'"","x"' + text,
        b'"1"' + text, b'"1","x","y"' + text, b'"1"' + b',"  "' * (columns - 1), b'"1","x"y' + text,
        b'"1","caf\xe9"' + text, b'"1"; "x"' + text,
    ]  # fmt: skip
    return Raw(task, f"{folder}/train.csv", b'"1","Title %d"' + text, tuple(bad))


WOZ_TURN = b'{"system_acts": [%s], "transcript": %s, "belief_state": [%s]}'
SQL = b'{"table_id": "t-1", "question": %s, "sql": {"sel": %s, "conds": [%s], "agg": %s}}'
FORMATS = {
    "woz": Raw(
        "woz",
        "woz/woz_train_en.json",
        b'{"dialogue": [\n' + WOZ_TURN % (b"", b'"hi %d"', b"") + b"\n]}",
        (
            b"7", b"{}", b'{"dialogue": 3}', b'{"dialogue": ["x"]}', b'{"dialogue": [{"transcript": "hi"}]}',
            *(b'{"dialogue": [' + WOZ_TURN % parts + b"]}" for parts in (
                (b"", b'" "', b""), (b"", b"null", b""), (b"3", b'"hi"', b""), (b"", b'"hi"', b"3"),
                (b"", b'"caf\xe9"', b""), (b"", rb'"\ud800"', b""),
                (b"", b'"hi"', b'{"act": "inform", "slots": [["food"]]}'),
                (b"", b'"hi"', b'{"act": "inform", "slots": [["food", null]]}'),
                (b"", b'"hi"', b'{"act": "request", "slots": [["slot", null]]}'),
            )),
        ),
        b"[\n",
        b",\n",
    ),
    "sql": Raw(
        "sql",
        "wikisql/train.jsonl",
        SQL % (b'"Who is %d?"', b"0", b"[1, 0, 7]", b"0"),
        (
            b"[1]", b"{}", b'{"table_id": "t-1", "que', b'{"table_id": "t-1", "question": "x", "sql": "x"}',
            (SQL % (b'"x"', b"0", b"", b"0")).replace(b"t-1", b"t-2"),
            (SQL % (b'"x"', b"0", b"", b"0")).replace(b'"t-1"', b"[1]"),
            *(SQL % parts for parts in (
                (b'"x"', b"2", b"", b"0"), (b'"x"', b"-1", b"", b"0"), (b'"x"', b"true", b"", b"0"),
                (b'"x"', b"null", b"", b"0"), (b'"x"', b"0", b"", b"6"), (b'"x"', b"0", b"[1, 4, 7]", b"0"),
                (b'"x"', b"0", b"[1, 0]", b"0"), (b'"x"', b"0", b"[2, 0, 7]", b"0"), (b'"x"', b"0", b"3", b"0"),
                (b"null", b"0", b"", b"0"), (b'"caf\xe9"', b"0", b"", b"0"), (b'"x"', b"0", b'[1, 0, "\xe9"]', b"0"),
            )),
        ),
    ),
    "tables": Raw(
        "sql",
        "wikisql/train.tables.jsonl",
        b'{"id": "t-1", "header": ["Player", "No."], "rows": [[%d]]}',
        (
            b"3", b"{}", b'{"id": "t-2"}', b'{"id": "t-2", "header": ["Pl', b'{"id": "t-2", "header": 3}',
            b'{"id": "t-2", "header": "Player"}', b'{"id": ["t-2"], "header": ["Player"]}',
            b'{"id": "t-2", "header": [["Player"]]}', b'{"id": "t-2", "header": ["Caf\xe9"]}',
        ),
    ),
    "cnn": Raw(
        "cnn",
        "cnn_dailymail/train.csv",
        b'a%d,"It ""rained"", a lot","Rain .\nIt was wet ."',
        (b"1,x", b"1,x,y,z", b"1,,y", b'1,x," "', b'1,"x"y,z', b"1,caf\xe9,y", b"1,x,\xe9", b"caf\xe9,x,y"),
        b"id,article,highlights\n",
    ),
    "stories": Raw(
        "cnn",
        "cnn_dailymail/all_train.txt",
        b"http://a/%d",
        (b"http://a/missing", b"http://a/no article", b"http://a/no highlight", b"http://a/latin", b"http://a/\xe9"),
    ),
    "e2e": Raw(
        "e2e",
        "e2e/trainset.csv",
        b'"name[A %d], food[Thai]","A is Thai, and ""cheap""."',
        (b"name[A]", b"a,b,c", b",b", b'name[A]," "', b'"a"b,c', b"caf\xe9,b", b"a,\xe9"),
        b"mr,ref\n",
    ),
    "rnnlg": Raw(
        "rnnlg.rest",
        "rnnlg/restaurant/train.json",
        b'[\n"inform(name=a%d)",\n"a is nice", "a it is"\n]',
        (
            b"7", b"null", b'"abc"', b'{"a": 1, "b": 2, "c": 3}', b"[]", b'["x()", "y"]', b'["x()", "y", "z", "w"]',
            b'["x()", null, "z"]', b'["x()", "y", 3]', b'[3, "y", "z"]', b'["", "y", "z"]', b'["x()", "", "z"]',
            b'["x()", "y", " "]', b'["x()", "y", "\xe9"]', b'["\xe9()", "y", "z"]',
        ),
        b"# (c)\n#####\n[\n",
        b",\n",
    ),
    "ag": classes("ag", "ag_news", 3),
    "yelp": classes("yelp", "yelp", 2),
    "amazon": classes("amazon", "amazon", 3),
    "dbpedia": classes("dbpedia", "dbpedia", 3),
    "yahoo": classes("yahoo", "yahoo", 4),
}  # fmt: skip
PACKED = ("yelp", "amazon", "dbpedia", "yahoo", "sql", "tables")  # formats that are published as one archive
CASES = [(name, False) for name in FORMATS] + [(name, True) for name in PACKED]
STORY = "(CNN) -- It rained\n\nA lot.\n\n@highlight\n\nRain {}\n\n@highlight\n\nIt was wet .\n"


def good_rows(name, n):
    return [FORMATS[name].good % i for i in range(n)]


def write_raw(folder, name, train, test=None, packed=False):
    """A data directory with the rows of one format, and whatever else its reader wants. Returns the training file."""
    raw = FORMATS[name]
    foot = b"\n]\n" if raw.head.endswith(b"[\n") else b"\n"
    path = folder / raw.path
    path.parent.mkdir(parents=True, exist_ok=True)
    if raw.task == "sql":
        for split in SPLITS:
            (path.parent / f"{split}.jsonl").write_bytes(b"\n".join(good_rows("sql", 3)))
            (path.parent / f"{split}.tables.jsonl").write_bytes(b"\n".join(good_rows("tables", 1)))
    for split, rows in (("train", train), ("test", test or good_rows(name, 3))):
        renamed = "testset_w_refs.csv" if name == "e2e" and split == "test" else path.name.replace("train", split)
        (path.parent / renamed).write_bytes(raw.head + raw.between.join(rows) + foot)
        if name == "stories":
            write_stories(path.parent, split, rows)
    if packed:
        pack(path.parent, raw.task)
    return path


def tar(path, members, mode="w:gz"):
    """An archive of texts or bytes; a Path as its content makes a symbolic link to it."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, Path):
                info.type, info.linkname, content = tarfile.SYMTYPE, str(content), b""
            content = content.encode() if isinstance(content, str) else content
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def archive_name(task):
    return Path(next(iter(prepare_file.SOURCES[task][1]))).name


def pack(folder, task, extra=None):
    """Loose files -> the archive that they are published in, below a folder of its name."""
    name, files = archive_name(task), sorted(folder.glob("*.*l" if task == "sql" else "*.csv"))
    top = "data" if task == "sql" else name.removesuffix(".tgz")
    members = (extra or {}) | {f"{top}/{path.name}": path.read_bytes() for path in files}
    tar(folder / name, members, "w:bz2" if task == "sql" else "w:gz")
    for path in files:
        path.unlink()


def write_stories(folder, split, urls):
    """Stories of a list of addresses, in one of the two archives."""
    texts = {b"http://a/no article": STORY[STORY.index("@") :], b"http://a/no highlight": "Rain"}
    texts[b"http://a/latin"] = b"Caf\xe9\n\n@highlight\n\nx\n"
    names = {url: hashlib.sha1(url).hexdigest() for url in urls if url != b"http://a/missing"}
    stories = {f"stories/{name}.story": texts.get(url, STORY.format(chr(url[-1]))) for url, name in names.items()}
    paper = {"train": "cnn", "test": "dailymail"}[split]
    tar(folder / f"{paper}_stories.tgz", stories | {"x.story": "x"})


def first_lines(raw, rows):
    """The line that each row begins in."""
    text, lines = raw.head, []
    for row in rows:
        lines.append(text.count(b"\n") + 1)
        text += row + raw.between
    return lines


def mixed(name, bad, n_bad, n=400):
    """n rows with malformed ones among them, and the lines of those."""
    rows, places = good_rows(name, n), random.Random(len(bad)).sample(range(n), n_bad)
    for i, place in enumerate(sorted(places)):
        rows[place] = bad[i % len(bad)]
    lines = first_lines(FORMATS[name], rows)
    return rows, [lines[place] for place in sorted(places)]


def load(name, folder):
    return load_task(FORMATS[name].task, folder, folder / "cache")


# ---------------------------------------------------------------------- good files, loose and packed


@pytest.mark.parametrize("name, packed", CASES)
def test_every_format_is_read_whole_packed_or_not(tmp_path, capsys, name, packed):
    write_raw(tmp_path, name, good_rows(name, 20), packed=packed)
    task = load(name, tmp_path)
    assert (len(task.train), len(task.test)) == ({"rnnlg": 40, "tables": 3}.get(name, 20), 3)
    assert task.metric == METRICS[task.name] and "malformed" not in capsys.readouterr().out
    write_raw(tmp_path / "loose", name, good_rows(name, 20))
    assert (task.train, task.test) == (load(name, tmp_path / "loose").train, load(name, tmp_path / "loose").test)


@pytest.mark.parametrize("packed", [False, True])
def test_classes_are_named_and_a_written_line_break_is_a_blank(tmp_path, packed):
    """In these four sets `\\n` is how a line break within a text is written."""
    wanted = {
        "yelp": (rb'"5","Good.\n\nVery ""good"""', "very positive", 'Good. Very "good"'),
        "amazon": (rb'"1","Bad","So\nbad"', "very negative", "Bad So bad"),
        "dbpedia": (rb'"14","A book"," By\nme "', "WrittenWork", "A book By me"),
        "yahoo": (rb'"2","Why?","","Because\n\nof it"', "Science & Mathematics", "Why? Because of it"),
    }
    for name, (row, answer, context) in wanted.items():
        write_raw(tmp_path, name, [row], [row], packed=packed)
        e = load(name, tmp_path).test[0]
        assert (e.answer, e.context) == (answer, context)
        assert e.question == f"Is this {', '.join(CLASSES[name][:-1])} or {CLASSES[name][-1]}?"


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_number_has_its_name(tmp_path, name):
    rows = [good.replace(b'"1"', b'"%d"' % i, 1) for i, good in enumerate(good_rows(name, len(CLASSES[name])), 1)]
    write_raw(tmp_path, name, rows)
    assert [e.answer for e in load(name, tmp_path).train] == list(CLASSES[name])


@pytest.mark.parametrize("name", ["e2e", "cnn", "ag", "sql", "tables", "rnnlg", "woz", "stories"])
def test_line_ends_blank_lines_and_a_byte_order_mark_change_nothing(tmp_path, capsys, name):
    path = write_raw(tmp_path / "unix", name, good_rows(name, 9))
    other = write_raw(tmp_path / "dos", name, good_rows(name, 9))
    other.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert load(name, tmp_path / "unix").train == load(name, tmp_path / "dos").train
    assert "malformed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["woz", "sql", "cnn", "e2e", "rnnlg", "ag"])
def test_a_line_separator_inside_a_text_is_no_end_of_line(tmp_path, capsys, name):
    rows = [re.sub(rb"([a-z]{2}) ", "\\1\u2028\x85 ".encode(), row) for row in good_rows(name, 9)]
    assert "\u2028".encode() in rows[0]
    write_raw(tmp_path, name, rows)
    write_raw(tmp_path / "plain", name, good_rows(name, 9))
    task, plain = load(name, tmp_path), load(name, tmp_path / "plain")
    assert len(task.train) == len(plain.train) and "malformed" not in capsys.readouterr().out
    assert [" ".join(e.answer.split()) for e in task.train] == [" ".join(e.answer.split()) for e in plain.train]


@pytest.mark.parametrize("task", ["sql", "yelp", "amazon"])
def test_nothing_of_an_archive_is_written_outside_or_at_all(tmp_path, task):
    evil = {"../../evil.csv": "x", "/evil.csv": "x", f"{tmp_path}/evil.csv": "x", "link": tmp_path / "evil.csv"}
    evil |= {"link/x.csv": "x", "a/train.csv": tmp_path / "evil.csv"}
    path = write_raw(tmp_path / "up" / "raw", task, good_rows(task, 3))
    pack(path.parent, task, evil)
    assert len(load(task, tmp_path / "up" / "raw").train) == 3
    assert not list(tmp_path.rglob("evil*")) and not Path("/evil.csv").exists()
    assert sorted(p.name for p in path.parent.iterdir()) == [archive_name(task)]


def test_cnn_is_streamed_from_its_story_archives(tmp_path):
    write_raw(tmp_path, "stories", [b"http://a/1", b"http://a/2"], [b"http://b/3"])
    task = load_task("cnn", tmp_path, tmp_path / "cache")
    assert [(e.id, e.answer) for e in task.train] == [
        (hashlib.sha1(f"http://a/{i}".encode()).hexdigest(), f"Rain {i} . It was wet .") for i in (1, 2)
    ]
    assert task.test[0].context == "(CNN) -- It rained . A lot."


def test_stories_without_an_article_are_made_up_for_by_others(tmp_path, monkeypatch):
    """Table 1's size is reached although some stories of the public release have no article."""
    monkeypatch.setitem(TABLE_1, "cnn", (200, 3))
    good, missing = good_rows("stories", 202), [b"http://a/no article", b"http://a/no highlight"]
    write_raw(tmp_path, "stories", [*good[:101], *missing, *good[101:]])
    assert len(load("stories", tmp_path).train) == 200


def test_a_story_without_highlights_has_an_empty_summary():
    assert story("Only text") == {"context": "Only text .", "question": "What is the summary?", "answer": ""}


# ---------------------------------------------------------------------- malformed rows


MALFORMED = [(name, packed, i) for name, packed in CASES for i in range(len(FORMATS[name].bad))]


@pytest.mark.parametrize("name, packed, i", MALFORMED)
def test_up_to_one_percent_of_malformed_rows_is_left_out_and_counted(tmp_path, capsys, name, packed, i):
    rows, lines = mixed(name, FORMATS[name].bad[i : i + 1], 4)
    path = write_raw(tmp_path, name, rows, packed=packed)
    task = load(name, tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if "malformed" in line]
    assert len(said) == 1 and "4 of 400 rows malformed: line " in said[0] and said[0].endswith(", ...; left out")
    assert [int(line) for line in re.findall(r"line (\d+) \(\w+: ", said[0])] == lines[:3]
    assert path.name in said[0] and (not packed or archive_name(FORMATS[name].task) in said[0])
    assert len(task.train) == {"rnnlg": 792, "tables": 3}.get(name, 396) and len(task.test) == 3


@pytest.mark.parametrize("name, packed", CASES)
def test_more_than_one_percent_of_malformed_rows_is_an_error_that_shows_them(tmp_path, capsys, name, packed):
    rows, lines = mixed(name, FORMATS[name].bad, 5)
    path = write_raw(tmp_path, name, rows, packed=packed)
    with pytest.raises(DataError, match=r"5 of 400 rows malformed: .*, \.\.\.; more than 1%") as e:
        load(name, tmp_path)
    assert [int(line) for line in re.findall(r"line (\d+) \(\w+: ", str(e.value))] == lines[:3]
    assert path.name in str(e.value) and "\n" not in str(e.value) and "malformed" not in capsys.readouterr().out
    assert not list((tmp_path / "cache").rglob("*.jsonl"))


def test_malformed_rows_of_a_test_file_count_too_and_are_no_references(tmp_path, capsys):
    rows, lines = [b'name[A],"One %d"' % i for i in range(200)], [42, 142]
    for line in lines:
        rows[line - 2] = b"name[A],caf\xe9"
    write_raw(tmp_path, "e2e", good_rows("e2e", 2), rows)
    task = load("e2e", tmp_path)
    said = capsys.readouterr().out
    assert "testset_w_refs.csv: 2 of 200 rows malformed: line 42 (" in said and "), line 142 (" in said
    wanted = [f"One {i}" for i in range(200) if i + 2 not in lines]
    assert all(e.meta["references"] == wanted for e in task.test)


@pytest.mark.parametrize(
    "name, cut",
    [
        ("woz", b""), ("woz", b" \n"), ("woz", b"["), ("woz", b'{"a": 1}'), ("woz", b"[]"), ("woz", b"[" * 100000),
        ("woz", b"[\n" + FORMATS["woz"].good), ("woz", b"[\n" + FORMATS["woz"].good[:-5]),
        ("woz", b"[\n" + FORMATS["woz"].good + b"] [\n"), ("woz", b"\xff\xfe[]"), ("woz", b"<html>not found</html>"),
        ("rnnlg", b""), ("rnnlg", b"# (c)\n"), ("rnnlg", b'# (c)\n[\n["x()", "y", "z"],\n["x()", "y'),
        ("sql", b""), ("sql", b"\n \n"), ("sql", b"<html>not found</html>"), ("tables", b""),
        ("cnn", b""), ("cnn", b"id,article,highlights\n"), ("cnn", b'id,article,highlights\n1,x,"y .\nz'),
        ("cnn", b'id,article,highlights\n1,x,"y"\n2,x,"y\n'), ("cnn", b"id,article\n1,x\n"), ("cnn", b'"id'),
        ("cnn", b'"id"x,article,highlights\n1,x,y\n'),
        ("stories", b""), ("e2e", b""), ("e2e", b'mr,ref\n"a","b"\n"a","b'), ("e2e", b"a,b\nx,y\n"),
        ("ag", b""), ("ag", b'"1","x","y"\n"1","x","y\n'), ("yahoo", b""), ("yahoo", b'"1","x","y","'),
    ],
)  # fmt: skip
def test_a_file_that_is_empty_or_cut_off_is_named(tmp_path, name, cut):
    path = write_raw(tmp_path, name, good_rows(name, 3))
    path.write_bytes(cut)
    with pytest.raises(DataError, match=re.escape(str(path))) as e:
        load(name, tmp_path)
    assert "\n" not in str(e.value) and not list((tmp_path / "cache").rglob("*.jsonl"))


def test_where_quotes_or_a_list_are_not_closed_the_line_is_named(tmp_path):
    path = write_raw(tmp_path, "e2e", good_rows("e2e", 3))
    path.write_bytes(b'mr,ref\na,b\nc,"d\ne')
    with pytest.raises(DataError, match=r"trainset\.csv, line 3: cut off within quotes"):
        load("e2e", tmp_path)
    path = write_raw(tmp_path, "rnnlg", good_rows("rnnlg", 3))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"train\.json, line 12: .*cut off"):
        load("rnnlg", tmp_path)


@pytest.mark.parametrize("cut", [b'"1","', b""])
def test_a_broken_file_in_an_archive_is_named_with_its_archive(tmp_path, cut):
    path = write_raw(tmp_path, "yelp", good_rows("yelp", 3))
    path.write_bytes(cut)
    pack(path.parent, "yelp")
    with pytest.raises(DataError, match=r"yelp_review_full_csv\.tgz"):
        load("yelp", tmp_path)


@pytest.mark.parametrize("name", [*PACKED[:5], "stories"])
def test_an_archive_that_is_cut_off_or_none_is_named(tmp_path, name):
    path = write_raw(tmp_path, name, good_rows(name, 300), packed=name in PACKED)
    path = path.parent / ("cnn_stories.tgz" if name == "stories" else archive_name(FORMATS[name].task))
    whole = path.read_bytes()
    for raw in (whole[: len(whole) // 2], whole[: -len(whole) // 4], b"", b"<html>not found</html>"):
        path.write_bytes(raw)
        with pytest.raises(DataError, match=re.escape(str(path))) as e:
            load(name, tmp_path)
        assert "fetch it again" in str(e.value)


def broken(raw, r):
    """A file with some bytes changed, cut out or put in."""
    raw = bytearray(raw)
    for _ in range(r.choice([1, 3, 20])):
        i, kind = r.randrange(len(raw) + 1), r.randrange(3)
        raw[i : i + (0, 1, r.randrange(200))[kind]] = r.choice(
            [b"", b'"', b"\n", b"\xff", b"]", b"null", b"\\ud800", b"9" * 5000]
        )
    return bytes(raw)


@pytest.mark.parametrize("name, packed", CASES)
def test_no_bytes_make_anything_but_rows_or_a_data_error(tmp_path, name, packed):
    path = write_raw(tmp_path, name, good_rows(name, 30), packed=packed)
    path = path.parent / archive_name(FORMATS[name].task) if packed else path
    raw, r = path.read_bytes(), random.Random(0)
    for i in range(15):
        path.write_bytes(broken(raw, r))
        try:
            load_task(FORMATS[name].task, tmp_path, tmp_path / f"cache {i}")
        except DataError as e:
            assert "\n" not in str(e)


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize("name, packed", CASES)
def test_more_rows_than_table_1_counts_are_subsampled_in_their_old_order(tmp_path, monkeypatch, capsys, name, packed):
    rows = good_rows("sql" if name == "tables" else name, 40)
    path = write_raw(tmp_path, name, good_rows(name, 40) if name == "tables" else rows)
    if name == "tables":
        path.with_name("train.jsonl").write_bytes(b"\n".join(rows))
    if packed:
        pack(path.parent, FORMATS[name].task)
    task, whole = FORMATS[name].task, load(name, tmp_path)
    monkeypatch.setitem(TABLE_1, task, (5, 9))
    capsys.readouterr()
    some = load_task(task, tmp_path, tmp_path / "other cache")
    again = load_task(task, tmp_path, tmp_path / "third cache")
    assert some.train == again.train == [e for e in whole.train if e in some.train] and len(some.train) == 5
    assert some.train != whole.train[:5] and some.test == whole.test
    if name != "stories":  # of which a few more are drawn, before they are read
        assert some.train == subsample(whole.train, 5)
    assert f"{task}: 5 / 3 examples; Table 1: 5 / 9 (fewer: all that the files hold)\n" in capsys.readouterr().out


def test_a_subsample_is_fixed_sorted_and_of_the_asked_size():
    rows = list(range(100))
    assert subsample(rows, 100) == rows == subsample(rows, 1000)
    some = subsample(rows, 10)
    assert len(some) == 10 and some == sorted(set(some)) == subsample(iter(rows), 10)
    counts = Counter(row for seed in range(500) for row in subsample(rows, 10, seed))
    assert set(counts) == set(rows) and max(counts.values()) < 90  # 50 each, on average


# ---------------------------------------------------------------------- the interchange format, keys, known files


def interchange(folder, rows=None):
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows or [{"id": "7", "context": " a  b ", "question": "q", "answer": "", "meta": {"x": 1}}] * 3
    for split in SPLITS:
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", ["cnn", "e2e", "yelp", "ag"])
def test_interchange_files_go_before_raw_ones_as_they_are(tmp_path, monkeypatch, name):
    monkeypatch.setitem(TABLE_1, FORMATS[name].task, (1, 1))
    path = write_raw(tmp_path, name, good_rows(name, 3))
    interchange(path.parent)
    task = load(name, tmp_path)
    assert task.train == task.test == [Example(" a  b ", "q", "", "7", {"x": 1})] * 3  # not subsampled either


def test_interchange_files_of_wikisql_count_where_no_tables_are(tmp_path):
    meta = {"sql": {"sel": 0, "agg": 0, "conds": []}, "header": ["A"]}
    write_raw(tmp_path, "sql", good_rows("sql", 4))
    assert len(load("sql", tmp_path).train) == 4
    interchange(tmp_path / "own" / "wikisql", [{"context": "c", "question": "q", "answer": "a", "meta": meta}])
    assert load("sql", tmp_path / "own").test == [Example("c", "q", "a", "1", meta)]


@pytest.mark.parametrize("line", ["{", "[]", '{"context": "c", "question": "q"}', '{"context": 3}'])
def test_a_broken_line_of_an_interchange_file_is_named(tmp_path, line):
    interchange(tmp_path / "yelp")
    with open(tmp_path / "yelp/train.jsonl", "a") as f:
        f.write(line + "\n")
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/yelp/train.jsonl, line 4: ")):
        prepare("yelp", tmp_path, tmp_path / "cache")


@pytest.mark.parametrize(
    "folder, there, missing",
    [
        ("cnn_dailymail", "train.jsonl", "test.jsonl"),
        ("cnn_dailymail", "test.csv", "train.csv"),
        ("yelp", "train.csv", "test.csv"),
        ("wikisql", "train.tables.jsonl", "train.jsonl"),
        ("wikisql", "test.jsonl", "train.jsonl"),
    ],
)
def test_half_a_data_set_is_an_error_and_not_a_download(tmp_path, folder, there, missing):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / there).write_text("{}")
    task = next(task for task, (place, _) in prepare_file.SOURCES.items() if place == folder)
    with pytest.raises(DataError, match=f"{missing} is missing, but .*{there} is there"):
        prepare(task, tmp_path, tmp_path / "cache")


def test_prepared_files_are_keyed_by_their_raw_files(tmp_path):
    write_raw(tmp_path, "woz", good_rows("woz", 2))
    one = prepare("woz", tmp_path, tmp_path / "cache")
    stamp = (one / "train.jsonl").stat().st_mtime_ns
    (tmp_path / "woz/woz_train_en.json").touch()
    assert prepare("woz", tmp_path, tmp_path / "cache") == one and (one / "train.jsonl").stat().st_mtime_ns == stamp
    write_raw(tmp_path, "woz", [FORMATS["woz"].good % 7])
    other = prepare("woz", tmp_path, tmp_path / "cache")
    assert other != one and read_jsonl(other / "train.jsonl")[0]["context"] == "hi 7"
    write_raw(tmp_path, "woz", good_rows("woz", 2))
    assert prepare("woz", tmp_path, tmp_path / "cache") == one
    assert sorted(p.name for p in (tmp_path / "cache" / "data").iterdir()) == sorted([one.name, other.name])


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_prepared_files_are_there_whole_or_not_at_all(tmp_path, monkeypatch, step):
    def full(*_):
        raise OSError(28, "No space left on device")

    write_raw(tmp_path, "woz", good_rows("woz", 2))
    with monkeypatch.context() as m:
        m.setattr(os, step, full)
        with pytest.raises(DataError, match=r"--cache-dir .*cache: can't be written to \(No space left on device\)"):
            prepare("woz", tmp_path, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "data").iterdir())
    assert prepare("woz", tmp_path, tmp_path / "cache").is_dir()


def test_the_rules_are_a_part_of_the_key(tmp_path, monkeypatch):
    write_raw(tmp_path, "woz", good_rows("woz", 2))
    one = prepare("woz", tmp_path, tmp_path / "cache")
    monkeypatch.setattr(prepare_file, "RULES", "another")
    assert prepare("woz", tmp_path, tmp_path / "cache") != one


def test_a_file_of_the_users_own_is_said_to_be_one_and_a_known_file_is_not(tmp_path, monkeypatch, capsys):
    path = write_raw(tmp_path, "woz", good_rows("woz", 2))
    known = {url: prepare_file.sha256(path.with_name(Path(url).name)) for url in prepare_file.SOURCES["woz"][1]}
    monkeypatch.setitem(prepare_file.SOURCES, "woz", ("woz", known))
    for row, own in ((0, []), (1, ["woz_train_en.json"])):
        if own:
            write_raw(tmp_path, "woz", [FORMATS["woz"].good % row])
        prepare("woz", tmp_path, tmp_path / "cache")
        said = [line for line in capsys.readouterr().out.splitlines() if "known" in line]
        assert said == [f"woz: {o} in {path.parent}: used as found, not the known public file" for o in own]
    interchange(path.parent, [{"context": "c", "question": "q", "answer": "a", "meta": {"turn": "en_0_0"}}])
    prepare("woz", tmp_path, tmp_path / "cache")
    assert f"woz: train.jsonl, test.jsonl in {path.parent}: used as found" in capsys.readouterr().out


# ---------------------------------------------------------------------- what the metric needs


FORM = {"sel": 0, "agg": 0, "conds": [[0, 0, "x"]]}


@pytest.mark.parametrize(
    "task, good, bad",
    [
        ("woz", {"turn": "en_0_0"}, {}),
        ("woz", {"turn": "en_0_0"}, {"turn": 3}),
        ("sql", {"sql": FORM, "header": ["A"]}, {"sql": FORM}),
        ("sql", {"sql": FORM, "header": ["A"]}, {"header": ["A"]}),
        ("sql", {"sql": FORM, "header": ["A"]}, {"sql": FORM, "header": []}),
        ("sql", {"sql": FORM, "header": ["A"]}, {"sql": FORM, "header": [1]}),
        ("sql", {"sql": FORM, "header": ["A"]}, {"sql": {"sel": 0, "agg": 0}, "header": ["A"]}),
        ("sql", {"sql": FORM, "header": ["A"]}, {"sql": FORM | {"sel": "A"}, "header": ["A"]}),
        ("sql", {"sql": FORM, "header": ["A"]}, {"sql": FORM | {"sel": 1}, "header": ["A"]}),
        ("sql", {"sql": FORM, "header": ["A"]}, {"sql": FORM | {"agg": 6}, "header": ["A"]}),
        ("sql", {"sql": FORM, "header": ["A"]}, {"sql": FORM | {"conds": [[0, 0]]}, "header": ["A"]}),
        ("e2e", {}, {"references": "text"}),
        ("own", {"sql": FORM, "header": ["A"]}, {}),
        ("own", {"sql": FORM, "header": ["A"]}, {"sql": None, "header": ["A"]}),
    ],
)
def test_a_test_example_without_what_its_metric_needs_is_named(tmp_path, task, good, bad):
    folder = tmp_path / {"sql": "wikisql"}.get(task, task)
    rows = [{"context": "c", "question": "q", "answer": "a", "meta": meta} for meta in (good, good, bad)]
    interchange(folder, rows)
    (folder / "task.json").write_text('{"metric": "lfem"}')
    entry = str(folder) if task == "own" else task
    with pytest.raises(DataError, match=rf"^{re.escape(str(folder))}.test\.jsonl, example 3: 'meta' lacks what \w+"):
        load_task(entry, tmp_path, tmp_path / "cache")
    interchange(folder, rows[:2])
    assert len(load_task(entry, tmp_path, tmp_path / "cache").test) == 2


@pytest.mark.parametrize(
    "text", ['{"metric": "bleu"}', '{"metric": ["em"]}', "{}", "[]", '"em"', "", '{"metric": ', "[" * 100000, "\xe9"]
)
def test_an_unknown_metric_is_an_error(tmp_path, text):
    interchange(tmp_path / "own")
    (tmp_path / "own/task.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"task\.json: .*joint_goal_em, lfem, rouge, em"):
        load_task(str(tmp_path / "own"), tmp_path, tmp_path)


def test_a_task_is_scored_by_the_metric_that_its_folder_names(tmp_path):
    interchange(tmp_path / "own", [{"context": "c", "question": "q", "answer": "a b c d"}])
    assert score(load_task(str(tmp_path / "own"), "", ""), ["a b"]) == {"score": 0, "em": 0}
    (tmp_path / "own/task.json").write_text('{"metric": "rouge"}')
    wanted = rouge_scores(["a b"], ["a b c d"])
    assert score(load_task(str(tmp_path / "own"), "", ""), ["a b"]) == {"score": wanted["rouge"], **wanted}
    assert wanted["rouge"] > 50


# ---------------------------------------------------------------------- the authors' own processed files


def squad(folder, name, questions, split):
    """`{name}_to_squad-{split}-v2.0.json`; questions are (id, context, question, answer), in an order of their own."""
    folder.mkdir(exist_ok=True)
    shuffled = random.Random(0).sample(questions, len(questions))
    data = [
        {"paragraphs": [{"context": c, "qas": [{"id": id, "question": q, "answers": [{"text": a}] if a else []}]}]}
        for id, c, q, a in shuffled
    ]
    (folder / f"{name}_to_squad-{split}-v2.0.json").write_text(json.dumps({"version": "2", "data": data}))


def squads(folder, name, n=12, kind=int, answer="answer {}"):
    for split in SPLITS:
        squad(folder, name, [(kind(i), f"context {i}", "question?", answer.format(i)) for i in range(n)], split)


WOZ_ANSWERS = [[f"en_{i // 3}_{i % 3}", f"food: f{i};"] for i in range(12)]
SQL_ANSWERS = [
    {"sql": form, "header": ["A", "B"], "answer": f"select a from table where b = {i}", "table": f"t-{i}"}
    for i, form in enumerate({"sel": 0, "agg": 0, "conds": [[1, 0, i]]} for i in range(12))
]


def lamol(folder, kind=int):
    """A folder as the authors released it, of four tasks."""
    for name in ("woz.en", "wikisql", "ag", "e2enlg"):
        squads(folder, name, kind=kind)
    (folder / "woz.en_answers.json").write_text(json.dumps(WOZ_ANSWERS))
    (folder / "wikisql_answers.json").write_text(json.dumps(SQL_ANSWERS))


@pytest.mark.parametrize("kind", [int, str])
def test_the_authors_files_are_loaded_and_scored(tmp_path, capsys, kind):
    """Ids are numbers or texts of numbers, shuffled in the file; answers are in the order of the numbers."""
    lamol(tmp_path / "lamol", kind)
    assert main(["--from-lamol", str(tmp_path / "lamol"), "--data-dir", str(tmp_path / "raw")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("for woz, sql, e2e, ag")
    tasks = {name: load_task(name, tmp_path / "raw", tmp_path / "cache") for name in ("woz", "sql", "e2e", "ag")}
    for name, task in tasks.items():
        assert [e.context for e in task.test] == [f"context {i}" for i in range(12)], name
        assert [e.id for e in task.train] == [str(i) for i in range(12)]
        assert [e.answer for e in task.train] == [f"answer {i}" for i in range(12)]
        assert score(task, [e.answer for e in task.test])["score"] == pytest.approx(100)
    assert [[e.meta["turn"], e.answer] for e in tasks["woz"].test] == WOZ_ANSWERS
    wanted = [{key: entry[key] for key in ("sql", "header")} for entry in SQL_ANSWERS]
    assert [e.meta for e in tasks["sql"].test] == wanted
    assert [e.answer for e in tasks["sql"].test] == [entry["answer"] for entry in SQL_ANSWERS]
    assert [e.answer for e in tasks["ag"].test] == [f"answer {i}" for i in range(12)]


def test_ids_that_are_no_numbers_are_ordered_as_text_after_numbers(tmp_path):
    for split in SPLITS:
        squad(tmp_path, "ag", [(id, f"c {id}", "q", "") for id in (2, "10", "x-1", "x-b")], split)
    main(["--from-lamol", str(tmp_path), "--data-dir", str(tmp_path / "raw")])
    task = load_task("ag", tmp_path / "raw", tmp_path / "cache")
    assert [(e.id, e.answer) for e in task.test] == [(id, "") for id in ("2", "10", "x-1", "x-b")]


def test_all_thirteen_tasks_are_found_by_the_authors_names(tmp_path, capsys):
    names = {"woz.en", "wikisql", "cnn_dailymail", "e2enlg", *DOMAINS, *CLASSES}
    lamol(tmp_path)
    for name in names:
        squads(tmp_path, name)
    assert main(["--from-lamol", str(tmp_path), "--data-dir", str(tmp_path / "raw")]) == 0
    assert set(capsys.readouterr().out.splitlines()[-1].split(", for ")[1].split(", ")) == set(TABLE_1)
    for task in TABLE_1:
        assert len(load_task(task, tmp_path / "raw", tmp_path / "cache").test) == 12


TRAIN, TEST = (f"ag_to_squad-{split}-v2.0.json" for split in SPLITS)
WOZ, SQL_JSON = "woz.en_answers.json", "wikisql_answers.json"


@pytest.mark.parametrize(
    "name, content",
    [
        (TRAIN, ""), (TRAIN, "[]"), (TRAIN, '{"data": 3}'), (TRAIN, '{"data": [{"paragraphs": [{"qas": []}]'),
        (TRAIN, '{"data": []}'), (TRAIN, '{"data": [{"paragraphs": [{"qas": [{"id": 0}]}]}]}'), (TRAIN, "[" * 100000),
        (TRAIN, '{"data": [{"paragraphs": [{"context": 3, "qas": [{"id": 0, "question": "q", "answers": []}]}]}]}'),
        (TEST, '{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": 0, "question": "q", "answers": [3]}]}]}]}'),
        (TEST, '{"data": [{"paragraphs": [{"context": "\xe9", "qas": [{"id": 0, "question": "q", "answers": []}]}]}]}'),
        (TRAIN, None), (TEST, None), (WOZ, None), (SQL_JSON, None), (WOZ, ""), (WOZ, "3"), (WOZ, "{}"),
        (WOZ, json.dumps(WOZ_ANSWERS[:-1])), (WOZ, json.dumps([*WOZ_ANSWERS, ["en_9_9", "None"]])),
        (WOZ, json.dumps([*WOZ_ANSWERS[:-1], ["en_9_9", 3]])), (WOZ, json.dumps([*WOZ_ANSWERS[:-1], ["en_9_9"]])),
        (WOZ, json.dumps([*WOZ_ANSWERS[:-1], [3, "None"]])), (WOZ, json.dumps(SQL_ANSWERS)),
        (SQL_JSON, json.dumps(SQL_ANSWERS[:-1])), (SQL_JSON, json.dumps([*SQL_ANSWERS[:-1], {"sql": {}}])),
        (SQL_JSON, json.dumps([*SQL_ANSWERS[:-1], SQL_ANSWERS[0] | {"header": 3}])),
        (SQL_JSON, json.dumps([*SQL_ANSWERS[:-1], SQL_ANSWERS[0] | {"header": [3]}])),
        (SQL_JSON, json.dumps([*SQL_ANSWERS[:-1], SQL_ANSWERS[0] | {"sql": {"sel": "A", "agg": 0, "conds": []}}])),
        (SQL_JSON, json.dumps(WOZ_ANSWERS)),
    ],
)  # fmt: skip
def test_authors_files_that_are_broken_or_missing_are_one_line(tmp_path, capsys, name, content):
    lamol(tmp_path / "lamol")
    path = tmp_path / "lamol" / name
    path.unlink() if content is None else path.write_bytes(content.encode("latin-1"))
    code = main(["--from-lamol", str(tmp_path / "lamol"), "--data-dir", str(tmp_path / "raw")])
    said = capsys.readouterr().err
    assert code == 1 and name in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "raw").exists()  # not even of the tasks before it


def test_of_several_answers_the_first_counts_and_all_are_references(tmp_path):
    squads(tmp_path, "e2enlg")
    path = tmp_path / "e2enlg_to_squad-test-v2.0.json"
    qas = [{"id": 0, "question": "q", "answers": [{"text": "red"}, {"text": "tan"}]}]
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": qas}]}]}))
    assert main(["--from-lamol", str(tmp_path), "--data-dir", str(tmp_path / "raw")]) == 0
    task = load_task("e2e", tmp_path / "raw", tmp_path / "cache")
    assert task.test[0].answer == "red" and task.test[0].meta == {"references": ["red", "tan"]}
    assert [score(task, ["tan"], multi)["score"] > 0 for multi in (False, True)] == [False, True]


def test_a_task_that_fails_does_not_keep_the_others_from_being_prepared(tmp_path, capsys):
    write_raw(tmp_path, "woz", good_rows("woz", 2))
    (tmp_path / "cnn_dailymail").mkdir()
    (tmp_path / "cnn_dailymail" / "train.csv").write_text("id")
    assert main(["cnn", "woz", "--data-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache")]) == 1
    said = capsys.readouterr()
    assert (
        said.err.startswith("error: ")
        and "test.csv is missing" in said.err
        and "examples; Table 1: 2536 / 1646" in said.out
    )


@pytest.mark.parametrize("place", ["empty", "nowhere", "file"])
def test_a_folder_without_the_authors_files_is_one_line(tmp_path, capsys, place):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    assert main(["--from-lamol", str(tmp_path / place), "--data-dir", str(tmp_path / "raw")]) == 1
    said = capsys.readouterr().err
    assert place in said and "woz.en" in said and said.count("\n") == 1


def test_the_authors_files_never_take_the_place_of_raw_wikisql(tmp_path, capsys):
    path = write_raw(tmp_path / "raw", "sql", good_rows("sql", 3))
    before = path.read_bytes()
    lamol(tmp_path / "lamol")
    assert main(["--from-lamol", str(tmp_path / "lamol"), "--data-dir", str(tmp_path / "raw")]) == 1
    said = capsys.readouterr().err
    assert "wikisql" in said and "--data-dir" in said and said.count("\n") == 1
    assert path.read_bytes() == before


# ---------------------------------------------------------------------- the command line


@pytest.mark.parametrize("arguments", [["nonsense"], ["woz", "--no-such-option"], ["--data-dir"]])
def test_bad_usage_is_one_line_and_2(arguments):
    root = Path(prepare_file.__file__).parents[1]
    done = subprocess.run([sys.executable, "-m", "lab.prepare", *arguments], cwd=root, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert arguments[-1] in done.stderr and not done.stdout


def test_tasks_are_not_dropped_in_silence_beside_the_authors_files(tmp_path, capsys):
    lamol(tmp_path)
    with pytest.raises(SystemExit) as e:
        main(["woz", "--from-lamol", str(tmp_path), "--data-dir", str(tmp_path / "raw")])
    assert e.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("option", ["--data-dir", "--cache-dir", "--from-lamol"])
def test_a_place_that_is_not_there_or_cannot_be_written_to_is_one_line(tmp_path, capsys, monkeypatch, option):
    urls = {f"http://127.0.0.1:9/woz_{split}_en.json": "0" * 64 for split in SPLITS}
    monkeypatch.setitem(prepare_file.SOURCES, "woz", ("woz", urls))
    write_raw(tmp_path, "woz", good_rows("woz", 2))
    lamol(tmp_path / "lamol")
    (tmp_path / "file").write_text("no folder")
    places = {"--data-dir": tmp_path, "--cache-dir": tmp_path / "cache"} | {option: tmp_path / "file" / "below"}
    tasks = ["woz"]
    if option == "--from-lamol":
        tasks, places = [], {option: tmp_path / "lamol", "--data-dir": tmp_path / "file" / "below"}
    assert main([*tasks, *(str(word) for pair in places.items() for word in pair)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and str(tmp_path / "file") in said


def test_named_tasks_are_prepared_and_their_folders_printed(tmp_path, capsys):
    for name in ("woz", "yelp", "rnnlg"):
        write_raw(tmp_path, name, good_rows(name, 2))
    assert main(["woz", "yelp", "--data-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache")]) == 0
    said = capsys.readouterr().out.splitlines()
    folders = sorted((tmp_path / "cache" / "data").iterdir())
    assert len(folders) == 2 and all(f"{folder.name.split('-')[0]} {folder}" in said for folder in folders)
    assert all(len(read_jsonl(folder / f"{split}.jsonl")) > 1 for folder in folders for split in SPLITS)


# ---------------------------------------------------------------------- archives and files that mean harm


def bomb(path, header_type, size, fill=b"\0"):
    """A .tgz of a few kilobytes whose first member claims, and has, `size` bytes."""
    info = tarfile.TarInfo("dbpedia_csv/train.csv")
    info.type, info.size = header_type, size
    with gzip.open(path, "wb", compresslevel=1) as f:
        f.write(info.tobuf())
        for _ in range(size // 2**20):
            f.write(fill * 2**20)


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE], ids=["pax", "long", "file"]
)
def test_a_small_archive_that_unpacks_to_far_more_is_refused_in_little_memory(tmp_path, monkeypatch, kind):
    (tmp_path / "dbpedia").mkdir()
    bomb(tmp_path / "dbpedia" / "dbpedia_csv.tgz", kind, 2**28)
    monkeypatch.setattr(prepare_file, "MAX_ARCHIVE", 2**25)
    tracemalloc.start()
    with pytest.raises(DataError, match="not a whole archive"):
        prepare_file.prepare("dbpedia", tmp_path, tmp_path / "cache")
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()


def test_a_member_that_is_too_large_for_memory_is_refused(tmp_path, monkeypatch):
    (tmp_path / "wikisql").mkdir()
    with tarfile.open(tmp_path / "wikisql" / "data.tar.bz2", "w:bz2") as tar:
        info = tarfile.TarInfo("data/train.jsonl")
        info.size = 2**20
        tar.addfile(info, io.BytesIO(b" " * 2**20))
    monkeypatch.setattr(prepare_file, "MAX_MEMBER", 2**19)
    with pytest.raises(DataError, match=r"train\.jsonl has 1048576 bytes"):
        prepare_file.prepare("sql", tmp_path, tmp_path / "cache")


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        os.mkfifo(own / name)
    with pytest.raises(DataError, match="no regular file"):
        prepare_file.read_task(own, "em")
