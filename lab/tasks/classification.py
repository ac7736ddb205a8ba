"""AG News, Yelp, Amazon, DBPedia, Yahoo: a text -> the name of its class."""

from functools import partial
from pathlib import Path

from lab.tasks.archives import tar_stream
from lab.tasks.fetch import SOURCES, local_files, raw_file
from lab.tasks.reading import SPLITS, at, csv_items, good_rows, one_line, read_csv_files, subsample, text_lines

STARS = ("very negative", "negative", "neutral", "positive", "very positive")  # 1 to 5 stars
CLASSES = {
    "ag": ("World", "Sports", "Business", "Sci/Tech"),
    "yelp": STARS,
    "amazon": STARS,
    "dbpedia": (
        "Company", "EducationalInstitution", "Artist", "Athlete", "OfficeHolder", "MeanOfTransportation", "Building",
        "NaturalPlace", "Village", "Animal", "Plant", "Album", "Film", "WrittenWork",
    ),
    "yahoo": (
        "Society & Culture", "Science & Mathematics", "Health", "Education & Reference", "Computers & Internet",
        "Sports", "Business & Finance", "Entertainment & Music", "Family & Relationships", "Politics & Government",
    ),
}  # fmt: skip
COLUMNS = {"ag": 3, "yelp": 2, "amazon": 3, "dbpedia": 3, "yahoo": 4}  # the class, counted from 1, and texts


def reader(task, folder):
    """CSV without a header: the class, then one to three texts. From {train,test}.csv, else from the public archive."""
    names = [f"{split}.csv" for split in SPLITS]
    urls = list(SOURCES[task][1])
    if len(urls) == 2:
        files = [raw_file(task, folder, name) for name in names]
    else:
        files = local_files(folder, names) or [raw_file(task, folder, Path(urls[0]).name)]
    if len(files) == 2:
        return files, partial(read_csv_files, files, lambda split: partial(class_rows, task, split))

    def read(sizes):
        rows = {}
        with tar_stream(files[0]) as tar:
            for member in tar:
                split = Path(member.name).name.removesuffix(".csv")
                if member.isfile() and Path(member.name).name in names:
                    where = f"{files[0]}: {member.name}"
                    items = csv_items(where, text_lines(tar.extractfile(member)))
                    rows[split] = subsample(good_rows(where, items, partial(class_rows, task, split)), sizes[split])
        return rows

    return files, read


def class_rows(task, split, line, fields):
    """The texts joined; the question names the classes (our wording); the answer is the name of the class.

    A line break within a text is written `\\n` in these files, except in AG News, where a backslash is just that."""
    label, *texts = fields
    if len(fields) != COLUMNS[task]:
        raise ValueError(f"{len(fields)} fields in place of {COLUMNS[task]}")
    if task != "ag":
        texts = [text.replace("\\n", " ") for text in texts]
    names = CLASSES[task]
    return [
        {
            "id": f"{split}-{line}",
            "context": one_line(" ".join(texts)),
            "question": f"Is this {', '.join(names[:-1])} or {names[-1]}?",
            "answer": at(names, int(label) - 1),
        }
    ]
