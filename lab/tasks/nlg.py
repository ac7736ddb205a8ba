"""E2E NLG and RNNLG: a meaning representation -> a sentence."""

from functools import partial

from lab.tasks.fetch import raw_file
from lab.tasks.reading import SPLITS, good_rows, json_items, one_line, read_csv_files, subsample, text_of

QUESTION = "What is the natural language form?"


def e2e_reader(task, folder):
    """CSV files of `mr,ref`: each row is an example.

    A test row's `meta.references` are all references of its mr, in file order."""
    files = [raw_file(task, folder, name) for name in ("trainset.csv", "testset_w_refs.csv")]

    def read(sizes):
        every = dict.fromkeys(SPLITS, 10**9)  # references are collected before rows are drawn
        rows = read_csv_files(files, lambda split: partial(e2e_rows, split), every, header=True)
        references = {}
        for row in rows["test"]:
            references.setdefault(row["context"], []).append(row["answer"])
        for row in rows["test"]:
            row["meta"] = {"references": references[row["context"]]}
        return {split: subsample(rows[split], sizes[split]) for split in SPLITS}

    return files, read


def e2e_rows(split, line, item):
    parts = {"context": one_line(item["mr"]), "question": QUESTION, "answer": item["ref"].strip()}
    return [{"id": f"{split}-{line}", **parts}]


def rnnlg_reader(task, folder):
    """JSON lists of `[act, human response, HDC baseline]`, below lines that start with `#`.

    Table 1 counts the training rows of rest, hotel and tv twice, and those of laptop once. So we take both texts as
    targets there, and the human one here; the counts are our only evidence. Test rows have the human one."""
    files = [raw_file(task, folder, f"{split}.json") for split in SPLITS]

    def read(sizes):
        rows = {}
        for split, path in zip(SPLITS, files):
            lines = ["" if line.startswith("#") else line for line in text_of(path).split("\n")]
            both = split == "train" and task != "rnnlg.laptop"
            items = json_items(path, "\n".join(lines))
            rows[split] = subsample(good_rows(path, items, partial(rnnlg_rows, split, both)), sizes[split])
        return rows

    return files, read


def rnnlg_rows(split, both, line, item):
    if not isinstance(item, list) or len(item) != 3:
        raise ValueError("not a list of 3 texts")
    act, *texts = item
    parts = {"context": act.strip(), "question": QUESTION}
    kinds = zip(("human", "hdc"), texts if both else texts[:1])
    return [{"id": f"{split}-{line}-{kind}", **parts, "answer": text.strip()} for kind, text in kinds]
