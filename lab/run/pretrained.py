"""Pretrained models and their tokenizers: OpenAI's GPT-2, nano, and folders in the Hugging Face layout.

A source is what --model takes: `gpt2`, `gpt2-medium`, `gpt2-large`, `gpt2-xl` (downloaded once), `nano`, or a folder
with `config.json` and `model.safetensors`. Nothing here executes code of a file.
"""

import base64
import hashlib
import json
from dataclasses import asdict
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import tiktoken
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from data import Tokenizer
from lab.errors import DataError, ModelFileError
from lab.files import sync
from lab.tasks import TASKS
from lab.tasks.fetch import one_at_a_time, receive, sha256
from model import GPT, GPTConfig

NANO = Path(__file__).parents[1] / "assets" / "nano"  # made by lab/nano.py
NANO_VOCABULARY = NANO.with_name("nano.tiktoken")
DEFAULT_CACHE = "~/.cache/l2kd"

SIZES = {
    "gpt2": GPTConfig(),
    "gpt2-medium": GPTConfig(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPTConfig(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPTConfig(n_embd=1600, n_layer=48, n_head=25),
}


class Download(NamedTuple):
    """Where the weights of a pretrained model are, their SHA-256 if one is published, and their size."""

    url: str
    sha256: str | None
    megabytes: int


HUB = "https://huggingface.co/openai-community"
PRETRAINED = {
    "gpt2": Download(
        f"{HUB}/gpt2/resolve/607a30d783dfa663caf39e06633721c8d4cfcd7e/model.safetensors",
        "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
        548,
    ),
    "gpt2-medium": Download(f"{HUB}/gpt2-medium/resolve/main/model.safetensors", None, 1520),
    "gpt2-large": Download(f"{HUB}/gpt2-large/resolve/main/model.safetensors", None, 3247),
    "gpt2-xl": Download(f"{HUB}/gpt2-xl/resolve/main/model.safetensors", None, 6432),
}
# What GPT-2 is, among the models that its config.json could describe.
PLAIN = {"model_type": "gpt2", "activation_function": "gelu_new", "n_inner": None, "scale_attn_weights": True}
PLAIN |= {"scale_attn_by_inverse_layer_idx": False}

# ---------------------------------------------------------------------- where everything starts


def pretrained(source: str | Path, cache_dir: str | Path = DEFAULT_CACHE, why: str = "") -> tuple[GPT, Tokenizer]:
    """The model of a source, its vocabulary grown by ANS, PAD and the task slots, and its tokenizer.

    why: the reason for this model, which is printed before a download. Raises ModelFileError, DataError."""
    model, tokenizer = load_gpt(source, cache_dir, why), tokenizer_of(source)
    known = model.config.vocab_size
    if known == tokenizer.n_base:
        model.grow_vocab(tokenizer.n_vocab - known)
    elif known != tokenizer.n_vocab:  # the model of a run has grown already
        raise ModelFileError(f"{source}: the model has {known} tokens, but its tokenizer has {tokenizer.n_base}")
    return model, tokenizer


def load_student(folder: str | Path) -> tuple[GPT, Tokenizer, dict]:
    """A model folder that a run has written -> the model, its tokenizer with the tasks' slots, its config.json.

    Raises ModelFileError, DataError."""
    model, tokenizer = load_gpt(folder), tokenizer_of(folder)
    path = Path(folder) / "config.json"
    config = read_object(path)
    slots, budgets = config.get("task_slots"), config.get("answer_budgets", {})
    if model.config.vocab_size != tokenizer.n_vocab:
        raise ModelFileError(f"{folder}: no model of a run: {model.config.vocab_size} tokens, not {tokenizer.n_vocab}")
    if not isinstance(slots, dict) or not all(map(tokenizer.is_task, slots.values())):
        raise ModelFileError(f"{path}: no model of a run: it has no task_slots with a token for each task")
    longest = model.config.n_positions
    numbers = [config.get("max_len", longest), *(budgets.values() if isinstance(budgets, dict) else [0])]
    if any(type(n) is not int or not 0 < n <= longest for n in numbers):
        raise ModelFileError(f"{path}: max_len and answer_budgets must be numbers from 1 to {longest}")
    tokenizer.slots |= slots
    return model, tokenizer, config


# ---------------------------------------------------------------------- weights in and out


def load_gpt(source: str | Path, cache_dir: str | Path = DEFAULT_CACHE, why: str = "") -> GPT:
    """The GPT-2 of a source, in float32, with the vocabulary of the file. gpt2 and its larger sizes are downloaded
    into cache_dir. Raises ModelFileError, which names the file and the key."""
    if source in PRETRAINED:
        config, path = SIZES[source], download(source, cache_dir, why)
    else:
        folder = folder_of(source)
        config, path = read_config(folder / "config.json"), folder / "model.safetensors"
    try:
        return GPT.from_openai(config, read_weights(path))
    except ModelFileError:
        raise
    except ValueError as e:
        raise ModelFileError(f"{path}: {e}") from None


def folder_of(source: str | Path) -> Path:
    return NANO if source == "nano" else Path(source)


def save_gpt(model: GPT, folder: str | Path, dtype: torch.dtype = torch.float32, **extra) -> None:
    """Write `config.json` (with `extra`, JSON values) and `model.safetensors`, as transformers reads them, too."""
    folder, config = Path(folder), asdict(model.config)
    folder.mkdir(parents=True, exist_ok=True)
    dropout = config.pop("dropout")
    config |= {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new"}
    config |= {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout, "n_ctx": config["n_positions"]}
    config |= {"bos_token_id": extra.get("eos_token_id"), "tie_word_embeddings": True} | extra
    try:
        save_file(model.to_openai(dtype), folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as e:  # a full disk, for example
        raise OSError(f"{folder}: {e}") from None
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises ModelFileError."""
    try:
        if not path.is_file():  # reading a pipe would block
            raise FileNotFoundError
        return load_file(path)
    except FileNotFoundError:
        raise ModelFileError(f"{path} is missing; a model folder holds config.json and model.safetensors") from None
    except (SafetensorError, OSError) as e:
        raise ModelFileError(f"{path} is not a whole safetensors file: {e}") from None


def read_object(path: Path) -> dict:
    """The JSON object of a config.json. Raises ModelFileError."""
    try:
        if not path.is_file():  # reading a pipe would block
            raise FileNotFoundError
        value = json.loads(path.read_text(encoding="utf-8-sig"))  # perhaps with a byte order mark
    except FileNotFoundError:
        raise ModelFileError(f"{path} is missing; a model folder holds config.json and model.safetensors") from None
    except (ValueError, RecursionError, OSError) as e:
        raise ModelFileError(f"{path} can't be read as JSON: {e}") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path}: a JSON object is expected")
    return value


def read_config(path: Path) -> GPTConfig:
    """The GPTConfig of a Hugging Face `config.json`. Raises ModelFileError if it is not that of a plain GPT-2."""
    raw = read_object(path)
    for key, wanted in PLAIN.items():
        if raw.get(key, wanted) != wanted:
            raise ModelFileError(f"{path}: {key} = {raw[key]!r}, but GPT-2 has {wanted!r}")
    shape = {}
    for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        value = raw.get(key)
        if type(value) is not int or not 0 < value < 2**24:
            raise ModelFileError(f"{path}: {key} must be a positive number, not {value!r}")
        shape[key] = value
    if shape["n_embd"] % shape["n_head"]:
        raise ModelFileError(f"{path}: n_embd = {shape['n_embd']} can't be split over n_head = {shape['n_head']} heads")
    for key, name in (("dropout", "resid_pdrop"), ("layer_norm_epsilon", "layer_norm_epsilon")):
        value = raw.get(name, getattr(GPTConfig, key))
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise ModelFileError(f"{path}: {name} must be a number from 0 to 1, not {value!r}")
        shape[key] = value
    for name in ("embd_pdrop", "attn_pdrop"):
        if (value := raw.get(name, GPTConfig.dropout)) != shape["dropout"]:
            raise ModelFileError(f"{path}: {name} = {value!r}, but resid_pdrop = {shape['dropout']}; make them equal")
    return GPTConfig(**shape)


# ---------------------------------------------------------------------- downloads


def download(name: str, cache_dir: str | Path, why: str = "") -> Path:
    """The weight file of gpt2 or a larger size, which is downloaded into the cache folder if it is not there yet.

    The next try continues a download that was cut off. Raises ModelFileError, which says what to do offline."""
    url, digest, megabytes = PRETRAINED[name]
    path = Path(cache_dir).expanduser() / "models" / name / "model.safetensors"
    part = path.with_name(path.name + ".part")
    try:
        if path.exists():
            return path
        with one_at_a_time(path):
            if path.exists():  # another process has downloaded it while this one waited
                return path
            what = f"{name} ({why})" if why else name
            print(f"model    {what} is downloaded once, {megabytes} MB; --model nano needs no download", flush=True)
            receive(url, path, part)
            check_download(part, digest)
            sync(part)
            part.replace(path)
    except (OSError, HTTPException, DataError) as e:
        hint = f"to work offline, put the file at {path} yourself, or name a folder with --model, or --model nano"
        raise ModelFileError(f"{name}: can't download {url} ({e}); {hint}") from None
    return path


def check_download(part: Path, digest: str | None) -> None:
    """Raise DataError for a file that has another SHA-256 or, if none is published, is not whole, and delete it."""
    seen, wrong = sha256(part), ""
    if digest is None:
        try:
            with safe_open(part, "pt"):  # compares the sizes in the header with the file's
                print(f"no checksum is published for it; its SHA-256 is {seen}")
        except SafetensorError as e:
            wrong = f"not a whole safetensors file: {e}"
    elif seen != digest:
        wrong = f"its SHA-256 is {seen}, not {digest}"
    if wrong:
        part.unlink()
        raise DataError(f"broken or changed: {wrong}; deleted, the next try starts anew")


# ---------------------------------------------------------------------- tokenizers

VOCABULARY = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"  # from where tiktoken downloads it
VOCABULARY_FILES = ("vocab.bpe", "encoder.json")
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # how GPT-2 cuts text into words


def gpt2_tokenizer() -> Tokenizer:
    """GPT-2's own vocabulary, which tiktoken downloads once. Raises DataError if it can't."""
    try:
        return Tokenizer(tiktoken.get_encoding("gpt2"), TASKS)
    except (OSError, ValueError) as e:  # no network, or a wrong checksum
        urls = [VOCABULARY + name for name in VOCABULARY_FILES]
        files = " and ".join(f"{url} as {hashlib.sha1(url.encode()).hexdigest()}" for url in urls)
        hint = f"to work offline, set TIKTOKEN_CACHE_DIR to a folder with {files}"
        raise DataError(f"can't get GPT-2's vocabulary ({type(e).__name__}); {hint}") from None


def nano_tokenizer() -> Tokenizer:
    """The project's own 4,001 tokens (bytes, merges learned on text of the tasks, EOS), which need no download."""
    lines = NANO_VOCABULARY.read_text(encoding="ascii").splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
    special = {"<|endoftext|>": len(ranks)}
    encoding = tiktoken.Encoding("nano", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
    return Tokenizer(encoding, TASKS)


def tokenizer_of(source: str | Path) -> Tokenizer:
    """The tokenizer of a source: the one that its folder's config.json names, else GPT-2's.

    The registered tasks have its first slots, in their order. Raises ModelFileError, DataError."""
    name, path = "gpt2", folder_of(source) / "config.json"
    if source not in PRETRAINED and path.is_file():
        name = read_object(path).get("tokenizer", "gpt2")
    if name not in ("gpt2", "nano"):
        raise ModelFileError(f"{path}: tokenizer {name!r} is not known (gpt2 and nano are)")
    return nano_tokenizer() if name == "nano" else gpt2_tokenizer()
