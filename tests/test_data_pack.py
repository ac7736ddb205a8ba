"""The readers on real data, in ../shared: counts, texts, and the traps that its README lists.

python -m pytest tests/test_data_pack.py"""

import csv
import io
import json
import re
from collections import Counter
from contextlib import redirect_stdout
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch

import kd
from data import Task, encode_example, make_batch, plan_epoch
from eval import parse_state
from lab.tasks import TASKS, is_toy, load_task
from lab.tasks.nlg import e2e_reader
from lab.tasks.reading import SPLITS, subsample
from lab.tasks.wikisql import sql_row
from lamol import pseudo_per_task, real_samples

PARTIAL = {"sql": (1542, 2660), "cnn": (80, 20), "ag": (6600, 1000)}  # the pack has no whole public files of these
WHOLE = {task: TASKS[task].sizes for task in ("woz", "e2e", "rnnlg.rest", "rnnlg.hotel", "rnnlg.tv", "rnnlg.laptop")}
COUNTS = WHOLE | PARTIAL
DOMAINS = {"rnnlg.rest": "restaurant", "rnnlg.hotel": "hotel", "rnnlg.tv": "tv", "rnnlg.laptop": "laptop"}


class Real(NamedTuple):
    """The tasks of the data pack, as loaded, and what was printed."""

    tasks: dict[str, Task]
    printed: list[str]


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    pack, cache, printed = shared / "data", tmp_path_factory.mktemp("cache"), io.StringIO()
    before = {path: path.stat().st_mtime_ns for path in pack.rglob("*")}
    with redirect_stdout(printed):
        tasks = {name: load_task(name, pack, cache) for name in COUNTS}
    assert {path: path.stat().st_mtime_ns for path in pack.rglob("*")} == before  # raw files are only read
    return Real(tasks, printed.getvalue().splitlines())


def both(task):
    return task.train + task.test


def test_every_task_of_the_data_pack_has_its_counts_and_its_metric(real):
    assert {name: (len(t.train), len(t.test)) for name, t in real.tasks.items()} == COUNTS
    assert set(TASKS) - set(COUNTS) == {"yelp", "amazon", "dbpedia", "yahoo", *filter(is_toy, TASKS)}
    assert {name: t.metric for name, t in real.tasks.items()} == {name: TASKS[name].metric for name in COUNTS}


def test_files_that_are_not_the_public_ones_are_named_and_public_ones_are_not(real):
    own = {line.split(":")[0] for line in real.printed if "used as found, not the known public file" in line}
    fewer = {line.split(":")[0] for line in real.printed if line.endswith("(fewer: all that the files hold)")}
    assert own == fewer == set(PARTIAL) and len(real.printed) == len(COUNTS) + len(own)
    assert "e2e: 6000 / 2000 examples; Table 1: 6000 / 2000" in real.printed
    assert any("sql: 1542 / 2660 examples; Table 1: 6525 / 15878 (fewer" in line for line in real.printed)


# ---------------------------------------------------------------------- WOZ


def woz_turns(shared, split):
    dialogues = json.loads((shared / f"data/woz/woz_{split}_en.json").read_text(encoding="utf-8"))
    return [(f"en_{d}_{t}", turn) for d, one in enumerate(dialogues) for t, turn in enumerate(one["dialogue"])]


def test_woz_texts_are_those_of_the_authors(real, golden):
    contexts = {e.context for e in both(real.tasks["woz"])}
    texts = [case for case in golden("format")["text_cases"] if case["name"].startswith("woz")]
    assert texts and all(case["context"] in contexts for case in texts)
    answers = {e.meta["turn"]: e.answer for e in real.tasks["woz"].test}
    names = ("gold_as_pred", "all_None", "mixed_low", "mixed_high", "format_only")
    turns = [turn for case in golden("dsem")["sets"] if case["name"] in names for turn in case["turns"]]
    assert len(turns) > 1000 and all(answers[turn["dialogue_turn"]] == turn["gold"] for turn in turns)


@pytest.mark.parametrize("split", SPLITS)
def test_woz_answers_accumulate_to_the_belief_state(shared, real, split):
    """A later value replaces the earlier one of its slot, and requests are those of the turn alone, in order."""
    turns, examples = woz_turns(shared, split), getattr(real.tasks["woz"], split)
    assert [e.meta["turn"] for e in examples] == [id for id, _ in turns]
    dropped = 0
    for e, (id, turn) in zip(examples, turns):
        if id.endswith("_0"):
            state = {}
        informed, requests = parse_state(e.answer)
        state |= informed
        slots = [(item["act"], *slot) for item in turn["belief_state"] for slot in item["slots"]]
        belief = {slot: value for act, slot, value in slots if act == "inform"}
        assert [request for request in requests or [] if request] == [v for act, _, v in slots if act == "request"]
        assert belief.items() <= state.items()
        dropped += state != belief  # the state drops a slot again, which no change can say
    assert dropped < len(turns) / 100


def test_woz_survives_its_traps(shared, real):
    """Empty acts, strings and pairs as acts, blanks, several requests, nothing changed, labels unlike the state."""
    train = dict(woz_turns(shared, "train"))
    by_turn = {e.meta["turn"]: e for e in real.tasks["woz"].train}
    assert Counter(type(act) for turn in train.values() for act in turn["system_acts"]) == {str: 576, list: 27}
    for id, e in by_turn.items():
        assert (" -- " in e.context) == bool(train[id]["system_acts"])
        assert e.context.endswith(" ".join(train[id]["transcript"].split()))
        assert e.context == " ".join(e.context.split()) and e.context.isascii()
        assert e.answer == "None" or e.answer == e.answer.lower()
    assert by_turn["en_0_0"].context == "Are there any eritrean restaurants in town?"
    assert any(e.answer.count(",") > 1 and e.answer.startswith(";") for e in by_turn.values())
    assert {e.question for e in by_turn.values()} == {"What is the change in state?"}
    assert any(e.answer == "None" for e in by_turn.values())
    assert ["area", "centre"] in train["en_11_3"]["turn_label"] and "area" not in by_turn["en_11_3"].answer
    blank = [id for id, turn in woz_turns(shared, "test") if ["price range", " expensive"] in turn["turn_label"]]
    answers = {e.meta["turn"]: e.answer for e in real.tasks["woz"].test}
    assert [answers[id] for id in blank] == ["; price range"]  # it was expensive before


# ---------------------------------------------------------------------- WikiSQL


def sql_lines(shared, name):
    return (shared / "data" / "wikisql" / name).read_text(encoding="utf-8").rstrip("\n").split("\n")


def test_sql_texts_are_those_of_the_authors(golden):
    examples = [e for case in golden("lfem")["sets"] for e in case["examples"]]
    for e in examples:
        row = sql_row({"sql": e["sql"], "table_id": 0, "question": "Who?"}, {0: e["header"]})
        assert row["answer"] == " ".join(e["answer"].lower().split())
    assert len(examples) > 1000
    wanted = next(c for c in golden("format")["text_cases"] if c["name"] == "wikisql_1")
    header, question = re.fullmatch("the table has columns (.*) and key words .*-- (.*)", wanted["context"]).groups()
    form = {"sel": 2, "agg": 1, "conds": [[3, 0, "George Nicula"], [1, 2, 9]]}
    row = sql_row({"sql": form, "table_id": 0, "question": question}, {0: header.split(", ")})
    assert [row["context"], row["question"], [row["answer"]]] == [wanted[k] for k in ("context", "question", "answers")]


@pytest.mark.parametrize(
    "split, bare, kinds, foreign, again",
    [("train", 11, (1404, 712, 95), 136, 4), ("test", 18, (2497, 1392, 173), 218, 5)],
)
def test_sql_survives_its_traps(shared, real, split, bare, kinds, foreign, again):
    """No conditions; values of three kinds; non-ASCII questions; repeated lines; odd column names."""
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
    assert Counter(len(e.meta["sql"]["conds"]) for e in examples)[0] == bare
    assert sum(not json.loads(line)["question"].isascii() for line in lines) == foreign
    assert len(lines) - len(set(lines)) == again
    names = {name for header in headers.values() for name in header}
    assert "Date" in names and all(any(character in name for name in names) for character in ",(/")


# ---------------------------------------------------------------------- CNN/DailyMail


def test_cnn_survives_its_traps_and_csv_and_jsonl_give_the_same_rows(shared, real, tmp_path):
    """Line breaks in quotes, articles of any length, boilerplate, curly quotes, pounds, no-break spaces."""
    sample = shared / "data/cnn_dailymail/sample.csv"
    (tmp_path / "cnn_dailymail").mkdir()
    for split in SPLITS:
        (tmp_path / f"cnn_dailymail/{split}.csv").symlink_to(sample)
    task = load_task("cnn", tmp_path, tmp_path / "cache")
    with open(sample, encoding="utf-8", newline="") as f:
        raw = list(csv.DictReader(f))
    assert sum("\n" in row["highlights"] for row in raw) == 94
    for e, row in zip(task.train, raw, strict=True):
        article, highlights = (" ".join(row[column].split()) for column in ("article", "highlights"))
        assert (e.id, e.context, e.answer) == (row["id"], article, highlights)
    assert max(len(e.context.split()) for e in task.train) == 1677  # nothing is cut here
    text = "".join(e.context for e in task.train)
    assert "\xa0" in "".join(row["article"] for row in raw) and "\xa0" not in text and set("’“£–") <= set(text)
    assert {e.question for e in task.train} == {"What is the summary?"}
    by_id = {e.id: (e.context, e.answer) for e in task.train}
    assert all(by_id[e.id] == (e.context, e.answer) for e in both(real.tasks["cnn"]))


# ---------------------------------------------------------------------- E2E

# a field in quotes, which are doubled inside, or without any
E2E_RECORD = re.compile(r'(?:"((?:[^"]|"")*)"|([^,"\r\n]*)),(?:"((?:[^"]|"")*)"|([^\r\n]*))\r?\n')


@pytest.fixture(scope="module")
def e2e_raw(shared):
    """(mr, reference) of both files, found by another way than the csv module's."""
    rows = {}
    for split, name in zip(SPLITS, ("trainset.csv", "testset_w_refs.csv")):
        text = (shared / "data/e2e" / name).read_bytes().decode("utf-8")
        records = [[(g or "").replace('""', '"') for g in match.groups()] for match in E2E_RECORD.finditer(text)]
        rows[split] = [(mr or plain, ref or bare) for mr, plain, ref, bare in records[1:]]
    return rows


@pytest.fixture(scope="module")
def e2e_rows(shared):
    """All rows of both files, as read."""
    return e2e_reader("e2e", shared / "data/e2e")[1](dict.fromkeys(SPLITS, 10**6))


def test_every_row_of_e2e_is_an_example_and_table_1s_number_is_drawn(real, e2e_raw, e2e_rows):
    assert {split: len(rows) for split, rows in e2e_raw.items()} == {"train": 42061, "test": 4693}
    for split, size in zip(SPLITS, TASKS["e2e"].sizes):
        wanted = [(mr, ref.strip()) for mr, ref in e2e_raw[split]]
        assert [(row["context"], row["answer"]) for row in e2e_rows[split]] == wanted  # repeated ones, too
        assert [(e.context, e.answer) for e in getattr(real.tasks["e2e"], split)] == subsample(wanted, size)
    assert not {mr for mr, _ in e2e_raw["train"]} & {mr for mr, _ in e2e_raw["test"]}
    assert {e.question for e in both(real.tasks["e2e"])} == {"What is the natural language form?"}


def test_e2e_survives_its_traps(shared, e2e_raw, e2e_rows):
    """CRLF, line breaks inside a reference, blanks, repeated rows, references of one meaning in random order."""
    raw = {name: (shared / "data/e2e" / name).read_bytes() for name in ("trainset.csv", "testset_w_refs.csv")}
    assert raw["trainset.csv"].count(b"\r\n") == raw["trainset.csv"].count(b"\n") == 42064
    assert b"\r" not in raw["testset_w_refs.csv"]
    train = e2e_rows["train"]
    assert [i for i, row in enumerate(train, 1) if "\n" in row["answer"]] == [15765, 32410]
    assert train[15764]["answer"].endswith("near The Bakers.\r\n  This coffee shop is a high customer rating")
    assert train[15765]["id"] == "train-15768"  # lines are those of a text editor
    assert sum("  " in row["answer"] for row in train) == 5796  # inner blanks are the writers' own
    assert sum(ref != ref.strip() for _, ref in e2e_raw["train"]) == 3
    assert {c for row in train for c in row["context"] + row["answer"] if not c.isascii()} == {"£", "é"}
    assert len(train) - len({(row["context"], row["answer"]) for row in train}) == 1193
    counts = Counter(row["context"] for row in train)
    assert (len(counts), min(counts.values()), max(counts.values())) == (4862, 2, 46)
    grouped = sum(one["context"] == other["context"] for one, other in pairwise(train))
    assert grouped < len(train) / 100


def test_references_of_a_test_row_are_all_of_its_meaning_in_the_whole_file(shared, real, e2e_raw, tmp_path):
    references = {}
    for mr, ref in e2e_raw["test"]:
        references.setdefault(mr, []).append(ref.strip())
    counts = Counter(map(len, references.values()))
    assert (len(references), min(counts), max(counts)) == (630, 1, 45)
    pooled = load_task("e2e", shared / "data", tmp_path, multi_reference=True)
    assert all(e.meta == {"references": references[e.context]} for e in pooled.test)
    assert [e.context for e in pooled.test] == list(dict.fromkeys(e.context for e in real.tasks["e2e"].test))
    assert sum(len(e.meta["references"]) for e in pooled.test) > 2 * WHOLE["e2e"][1]  # more than were drawn
    assert not any(e.meta for e in real.tasks["e2e"].train + real.tasks["e2e"].test + pooled.train)


# ---------------------------------------------------------------------- RNNLG


@pytest.fixture(scope="module")
def rnnlg_raw(shared):
    """Task -> split -> [act, human, baseline], the `#` lines left out."""
    raw = {task: {} for task in DOMAINS}
    for task, domain in DOMAINS.items():
        for split in (*SPLITS, "valid"):
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


TRAPS = {  # acts without arguments, with a slot that has no value, with a slot named twice; rows with outer blanks
    "rnnlg.rest": (957, 703, 93, 1),
    "rnnlg.hotel": (1032, 554, 427, 4),
    "rnnlg.tv": (8, 0, 142, 641),
    "rnnlg.laptop": (4, 6, 397, 1),
}


@pytest.mark.parametrize("task", DOMAINS)
def test_rnnlg_survives_its_traps(real, rnnlg_raw, task):
    """`goodbye()`, `?request(area)`, `?select(a='yes';a='no')`: acts are texts, never parsed; outer blanks go."""
    acts = [row[0].strip() for rows in rnnlg_raw[task].values() for row in rows]
    assert {e.context for e in both(real.tasks[task])} <= set(acts)
    slots = [[slot for slot in act.partition("(")[2].removesuffix(")").split(";") if slot] for act in acts]
    names = [[slot.partition("=")[0] for slot in one] for one in slots]
    assert TRAPS[task] == (
        sum(not one for one in slots),
        sum(any("=" not in slot for slot in one) for one in slots),
        sum(len(one) > len(set(one)) for one in names),
        sum(row[1] != row[1].strip() for row in rnnlg_raw[task]["train"]),
    )
    assert all(re.fullmatch(r"\??\w+\(.*\)", act) for act in acts)
    assert all(e.answer == e.answer.strip() and e.answer.isascii() for e in both(real.tasks[task]))


# ---------------------------------------------------------------------- AG News


def test_ag_survives_its_traps(shared, tmp_path, capsys):
    """Doubled quotes, backslashes that escape nothing, left-over entities, outer blanks, class numbers from 1."""
    pack = shared / "data/ag_news"
    (tmp_path / "ag_news").mkdir()
    (tmp_path / "ag_news/train.csv").symlink_to(pack / "train.csv")
    (tmp_path / "ag_news/test.csv").symlink_to(pack / "public_test.csv")
    lines = (pack / "public_test.csv").read_text(encoding="utf-8").rstrip("\n").split("\n")
    fields = [re.fullmatch('"(.)","(.*?)","(.*)"', line).groups() for line in lines]
    test = load_task("ag", tmp_path, tmp_path / "cache").test
    names = ("World", "Sports", "Business", "Sci/Tech")
    for e, (label, title, text) in zip(test, fields, strict=True):
        assert e.context == " ".join(f"{title} {text}".replace('""', '"').split())
        assert e.answer == names[int(label) - 1]
    assert Counter(e.answer for e in test) == dict.fromkeys(names, 1900)
    assert sum("\\" in e.context for e in test) == 808
    assert sum(bool(re.search(r"#\d+;", e.context)) for e in test) == 1991
    assert sum(bool(re.search(r"&[lg]t;", e.context)) for e in test) == 302
    assert any('"' in e.context for e in test) and not any('""' in e.context for e in test)
    assert {e.question for e in test} == {"Is this World, Sports, Business or Sci/Tech?"}
    own = [line for line in capsys.readouterr().out.splitlines() if "malformed" in line or "as found" in line]
    assert own == [f"ag: train.csv in {tmp_path / 'ag_news'}: used as found, not the known public file"]


@pytest.mark.parametrize("new, old, joint", [("cnn", "woz", 0.02), ("cnn", "sql", 0.05), ("sql", "woz", 0.07)])
def test_replay_has_a_small_share_of_the_weights_under_joint_and_a_third_under_added(real, gpt2_tok, new, old, joint):
    """As lab/docs/FAITHFULNESS.md says: γ = 0.2, batches of 4, a mean over ten epochs."""
    encoded = {}
    for name in (new, old):
        rows = (encode_example(e, gpt2_tok.task_id(name), gpt2_tok, 1024) for e in real.tasks[name].train)
        encoded[name] = [sample for sample in rows if sample is not None]
    current = encoded[new]
    n = pseudo_per_task(len(current), 0.2, 1)
    for rule, wanted in (("joint", joint), ("added", 0.34)):
        shares, generator = [], torch.Generator().manual_seed(0)
        for _ in range(10):
            drawn = real_samples(encoded[old], gpt2_tok, old, n, generator)
            samples, of_replay, of_all = current + [one.sample for one in drawn], 0.0, 0.0
            for indices in plan_epoch(len(current), n, 4, "shuffled", generator):
                batch = make_batch(samples, indices, len(current), soft=rule == "added")
                for group, weights in zip(batch, kd.token_weights(batch, rule, gpt2_tok.ans_id)):
                    of_replay += float(weights[group.replay].sum())
                    of_all += float(weights.sum())
            shares.append(of_replay / of_all)
        assert sum(shares) / 10 == pytest.approx(wanted, abs=0.01), shares
