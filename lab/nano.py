"""How the tiny vocabulary and the tiny pretrained GPT-2 in lab/assets/ were made.

    python -m lab.nano --vocabulary     lab/assets/nano.tiktoken: 4,000 byte-pair tokens; EOS comes on top
    python -m lab.nano --pretrain       lab/assets/nano/: a GPT-2 of 1.3M parameters

The vocabulary is learned on toy grammars and on training text of the paper's tasks. The weights never see a task's
training or test rows: they learn from other draws of the toy grammars, from repeated spans, and from general English,
the entries of WordNet 3.0, which Debian has in its package wordnet-base. Beside each file is the recipe it was made by.
A --pretrain that was cut off goes on from its last checkpoint, bit for bit.
"""

import base64
import json
import math
import pickle
import platform
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import regex
import torch
from tqdm import tqdm

import kd
from lab.errors import DataError, Parser, command, expand_paths
from lab.files import replacing, write_folder, write_json, write_text
from lab.run.pretrained import DEFAULT_CACHE, NANO, PATTERN, nano_tokenizer, save_gpt
from lab.tasks import load_task
from lab.tasks.fetch import SOURCES, sha256
from lab.tasks.prepare import reader_of
from lab.tasks.reading import text_of
from lab.tasks.toy import GRAMMARS, toy_rows
from model import GPT, GPTConfig

ASSETS = NANO.parent

# ---------------------------------------------------------------------- the vocabulary

REAL_TASKS = ("woz", "e2e", "rnnlg.rest", "rnnlg.hotel", "rnnlg.tv", "rnnlg.laptop")
ROWS = 1000  # of each task, toy or real: a larger task does not get more of the vocabulary


def train_vocabulary(path: Path, data_dir: Path, cache_dir: Path, size: int = 4000) -> None:
    """Learn byte-pair merges on text of the tasks, toy and real. Most toy words become one token; any text encodes.

    The file has tiktoken's format: a line `<base64 of the token's bytes> <id>` a token, the 256 bytes first, then the
    merges in their order. `<path>.json` is the recipe. Raises DataError if a task's data can't be had."""
    rows = [row for task in GRAMMARS for row in toy_rows(task, "pretraining", ROWS)]
    texts = [row[part] for row in rows for part in ("context", "question", "answer")]
    for task in REAL_TASKS:
        train = load_task(task, data_dir, cache_dir, train_examples=ROWS).train
        texts += [text for e in train for text in (e.context, e.question, e.answer)]
    tokens = byte_pairs((f" {text.strip()}" for text in texts), size)
    write_text(path, "".join(f"{base64.b64encode(token).decode()} {id}\n" for id, token in enumerate(tokens)))
    recipe = {"tokens": len(tokens), "toy_tasks": list(GRAMMARS), "rows_a_task": ROWS}
    write_json(path.with_name(path.name + ".json"), recipe | {"training_files": training_files(data_dir)})


def byte_pairs(texts: Iterable[str], size: int) -> list[bytes]:
    """The 256 bytes and the byte-pair merges of texts, in their order: `size` tokens in all.

    A merge stays within a word, as PATTERN cuts them. Equally frequent pairs merge in the order of their ids."""
    try:
        from tokenizers import Tokenizer
        from tokenizers.models import BPE
        from tokenizers.trainers import BpeTrainer
    except ImportError:
        raise DataError("the package tokenizers is missing: pip install -r requirements-dev.txt") from None
    # one character a byte: latin-1 has exactly these 256
    words = (word.encode().decode("latin-1") for text in texts for word in regex.findall(PATTERN, text))
    model, alphabet = Tokenizer(BPE()), [chr(b) for b in range(256)]
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(words, trainer)
    ids = model.get_vocab()
    return [token.encode("latin-1") for token in sorted(ids, key=ids.get)]


def training_files(data_dir: Path) -> dict[str, str]:
    """The SHA-256 of each file of training text, by its path below data_dir."""
    folders = [data_dir / SOURCES[task][0] for task in REAL_TASKS]
    files = [path for task, folder in zip(REAL_TASKS, folders) for path in reader_of(task, folder)[0]]
    return {str(path.relative_to(data_dir)): sha256(path) for path in files if "train" in path.name}


# ---------------------------------------------------------------------- what the model is pretrained on

SHAPE = GPTConfig(vocab_size=4001, n_positions=256, n_embd=128, n_layer=4, n_head=4)
STEPS, TOKENS, LENGTHS = 10000, 2048, (64, 64, 128, 256)  # updates, tokens of an update, lengths of its rows
SHARES = {"grammar text": 1, "English": 2, "repeated spans": 1}  # quarters of each update's rows
LR, WARMUP = 2e-3, 100
ENGLISH = "WordNet 3.0, Princeton University, WordNet licence; Debian's package wordnet-base 1:3.0-37"
WORDNET_FILES = ("data.adj", "data.adv", "data.noun", "data.verb")


def wordnet_entries(folder: Path) -> list[str]:
    """Each entry of WordNet as a text: `synonym, synonym: definition; "example"`. Raises DataError without WordNet.

    A line of its files is `offset file type n word id word id ... | definition; "example"`, n in hexadecimal."""
    texts = []
    for name in WORDNET_FILES:
        try:
            lines = text_of(folder / name).splitlines()
        except OSError as e:
            hint = "apt-get install wordnet-base, or name the folder of WordNet's data files with --wordnet"
            raise DataError(f"{folder / name}: {e.strerror}; {hint}") from None
        for line in lines:
            if not line.startswith(" "):  # as the lines of the licence do
                fields, _, gloss = line.partition(" | ")
                fields = fields.split()
                words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
                texts.append(f"{', '.join(words)}: {gloss.strip()}")
    return texts


def joined_texts(r: Random, texts: list[list[int]], eos_id: int, n: int) -> list[int]:
    """n tokens of texts, one after the other, each with EOS behind it."""
    ids = []
    while len(ids) < n:
        ids += [*r.choice(texts), eos_id]
    return ids[:n]


def repeated_spans(r: Random, words: list[int], n: int) -> list[int]:
    """n tokens: random words, then copies of spans before them. To predict these is to copy from the context."""
    ids = r.choices(words, k=r.randint(4, min(32, n // 4)))
    while len(ids) < n:
        start = r.randrange(len(ids) - 3) if len(ids) > 4 and r.random() < 0.5 else 0
        ids += ids[start : start + r.randint(3, 24)]
    return ids[:n]


class Mixture:
    """The rows of each update: contexts of the toy tasks (no question, no answer), English, repeated spans."""

    def __init__(self, tokenizer, wordnet: Path):
        rows = [row for task in GRAMMARS for row in toy_rows(task, "pretraining", 3000)]
        self.eos_id, self.all_words = tokenizer.eos_id, range(tokenizer.n_base)
        self.grammar = [tokenizer.encode(row["context"]) for row in rows]
        self.english = [tokenizer.encode(text) for text in wordnet_entries(wordnet)]
        self.toy_words = sorted(
            {i for row in rows for key in ("context", "answer") for i in tokenizer.encode(row[key])}
        )

    def batch(self, step: int) -> torch.Tensor:
        """The ids (B, T + 1) of an update, in the order of SHARES. They depend on nothing but the step."""
        r = Random(step)
        T = r.choice(LENGTHS)
        draw = {
            "grammar text": lambda: joined_texts(r, self.grammar, self.eos_id, T + 1),
            "English": lambda: joined_texts(r, self.english, self.eos_id, T + 1),
            "repeated spans": lambda: repeated_spans(r, r.choice((self.toy_words, self.all_words)), T + 1),
        }
        quarter = TOKENS // T // 4
        return torch.tensor([draw[kind]() for kind, share in SHARES.items() for _ in range(share * quarter)])


# ---------------------------------------------------------------------- pretraining

SAVE_EVERY = 200  # updates


def first_model() -> GPT:
    """Random weights, always the same ones. GPT-2's initial scale is meant for 768 and more channels: here it is 4
    times as large."""
    torch.manual_seed(0)
    model = GPT(replace(SHAPE, dropout=0.0))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(4)
    return model


def recent(losses: list[list[float]]) -> dict[str, float]:
    """Losses of the quarters of each step -> the mean by kind of text, in nats a token."""
    columns, means, first = list(zip(*losses)), {}, 0
    for kind, share in SHARES.items():
        values = [x for column in columns[first : first + share] for x in column]
        means[kind], first = round(sum(values) / len(values), 4), first + share
    return means


def pretrain(folder: Path, wordnet: Path, steps: int = STEPS) -> dict:
    """Train a GPT-2 from random weights. Its weights (float16) and the recipe, which it returns, go into `folder`.

    It is the same in every run with the same torch and number of threads. `<folder>.checkpoint` holds what a run that
    was cut off needs to go on; it is deleted at the end. Raises DataError."""
    began, tokenizer, model = time.time(), nano_tokenizer(), first_model()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    mixture = Mixture(tokenizer, wordnet)
    recipe = {"steps": steps, "tokens_a_step": TOKENS, "row_lengths": list(LENGTHS), "quarters_of_a_step": SHARES}
    recipe |= {"lr": LR, "warmup_steps": WARMUP, "shape": asdict(SHAPE)}
    recipe |= {"english": {"source": ENGLISH, "files": {name: sha256(wordnet / name) for name in WORDNET_FILES}}}
    path = folder.with_name(folder.name + ".checkpoint")
    done, losses, before = load_checkpoint(path, recipe, model, optimizer) if path.exists() else (0, [], 0.0)
    bar = tqdm(range(done, steps), "pretraining", steps, initial=done)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = LR * min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * step / steps)))
        ids = mixture.batch(step)
        loss = kd.nll(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).view(4, -1).mean(dim=1)  # (4,) quarters
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses = [*losses[-99:], loss.tolist()]
        bar.set_postfix_str(", ".join(f"{kind} {value:.3f}" for kind, value in recent(losses).items()))
        if (step + 1) % SAVE_EVERY == 0:
            state = {"recipe": recipe, "done": step + 1, "losses": losses, "seconds": before + time.time() - began}
            state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            with replacing(path) as temporary:
                torch.save(state, temporary)
    model.config = replace(SHAPE)  # whoever goes on with it has dropout
    extra = {"tokenizer": tokenizer.name, "eos_token_id": tokenizer.eos_id}
    write_folder(folder, lambda temporary: save_gpt(model, temporary, torch.float16, **extra))
    recipe |= {"final_loss_nats": recent(losses), "python": platform.python_version(), "torch": torch.__version__}
    recipe |= {"threads": torch.get_num_threads(), "seconds": round(before + time.time() - began)}
    write_json(folder / "recipe.json", recipe)
    path.unlink(missing_ok=True)
    return recipe


def load_checkpoint(path: Path, recipe: dict, model: GPT, optimizer) -> tuple[int, list[list[float]], float]:
    """Bring model and optimizer to where a run was cut off. Returns its updates, its last losses, its seconds.

    Raises DataError if the file is broken or of another recipe."""
    hint = "delete it to start anew"
    try:
        state = torch.load(path, weights_only=True)
        if state["recipe"] != recipe:
            raise DataError(f"{path} is of another recipe; {hint}")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return state["done"], state["losses"], state["seconds"]
    except (RuntimeError, pickle.UnpicklingError, EOFError, LookupError, TypeError) as e:
        raise DataError(f"{path} does not load ({type(e).__name__}); {hint}") from None


@command(": --pretrain goes on from its last checkpoint, if it has one")
def main(argv=None) -> None:
    """The command line."""
    parser = Parser("python -m lab.nano", description=__doc__.split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--vocabulary", action="store_true", help="learn the vocabulary")
    what.add_argument("--pretrain", action="store_true", help="pretrain the model (about an hour on one core)")
    parser.add_argument("--out", default=str(ASSETS), help="folder for what is made (default %(default)s)")
    parser.add_argument("--data-dir", default="~/.cache/l2kd/raw", help="--vocabulary: raw data, as train.py's option")
    parser.add_argument("--cache-dir", default=DEFAULT_CACHE, help="--vocabulary: prepared data, as train.py's option")
    parser.add_argument(
        "--wordnet", default="/usr/share/wordnet", help="--pretrain: WordNet's folder (default %(default)s)"
    )
    o = parser.parse_args(argv)
    expand_paths(o, parser, "out", "data_dir", "cache_dir", "wordnet")
    if o.vocabulary:
        train_vocabulary(Path(o.out) / "nano.tiktoken", Path(o.data_dir), Path(o.cache_dir))
    else:
        print(json.dumps(pretrain(Path(o.out) / "nano", Path(o.wordnet)), indent=2))


if __name__ == "__main__":
    sys.exit(main())
