"""CNN/DailyMail: a news article -> its highlights."""

import hashlib
from functools import partial
from pathlib import Path

from lab.tasks.archives import content_of, tar_stream
from lab.tasks.fetch import local_files, raw_file
from lab.tasks.reading import SPLITS, decode, good_rows, one_line, read_csv_files, subsample, text_of

RECIPE = """or make train.csv and test.csv there with these lines, after `pip install datasets`:
import datasets
data = datasets.load_dataset("abisee/cnn_dailymail", "3.0.0")
[data[split].to_csv({!r} + f"/{{split}}.csv") for split in ("train", "test")]"""
ENDS = (".", "!", "?", "'", "`", '"', "’", "”", ")")  # of a sentence


def reader(task, folder):
    """From {train,test}.csv (`id,article,highlights`), else from lists of addresses and the two archives of stories."""
    if files := local_files(folder, [f"{split}.csv" for split in SPLITS]):
        return files, partial(read_csv_files, files, lambda split: csv_rows, header=True)
    lists = {split: raw_file(task, folder, f"all_{split}.txt") for split in SPLITS}
    instead = RECIPE.format(str(folder))
    archives = [raw_file(task, folder, f"{paper}_stories.tgz", instead) for paper in ("cnn", "dailymail")]

    def read(sizes):
        drawn = {}  # 2% more than wanted: some stories of the public release have no article
        for split, path in lists.items():
            urls = ((n, url.strip()) for n, url in enumerate(text_of(path).split("\n"), 1) if url.strip())
            drawn[split] = [(n, story_name(url)) for n, url in subsample(urls, sizes[split] + sizes[split] // 50)]
        stories = read_stories(archives, {name for rows in drawn.values() for _, name in rows})

        def convert(line, name):
            if name not in stories:
                raise ValueError(f"{name}.story is in neither archive")
            return [{"id": name, **story_parts(stories[name])}]

        return {split: subsample(good_rows(lists[split], drawn[split], convert), sizes[split]) for split in SPLITS}

    return [*lists.values(), *archives], read


def csv_rows(line, item):
    return [{"id": item["id"], **parts(item["article"], item["highlights"])}]


def parts(article, highlights):
    return {"context": one_line(article), "question": "What is the summary?", "answer": one_line(highlights)}


def story_name(url: str) -> str:
    """A story's file is named by the SHA-1 of its address."""
    return hashlib.sha1(url.encode(errors="replace")).hexdigest()


def read_stories(archives, names) -> dict[str, str]:
    """The texts of the wanted stories, by name."""
    stories = {}
    for archive in archives:
        with tar_stream(archive) as tar:
            for member in tar:
                name = Path(member.name).name.removesuffix(".story")
                if member.isfile() and name in names:
                    stories[name] = decode(content_of(tar, member))
    return stories


def story_parts(text: str) -> dict[str, str]:
    """A story: article lines, then `@highlight` before each highlight.

    A line that ends no sentence gets ` .`, as in the public CSV."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    lines = [line if line == "@highlight" or line.endswith(ENDS) else line + " ." for line in lines]
    first = lines.index("@highlight") if "@highlight" in lines else len(lines)
    return parts(" ".join(lines[:first]), " ".join(line for line in lines[first:] if line != "@highlight"))
