"""Pretrained models and their tokenizers: OpenAI's GPT-2, nano, folders and repositories in the Hugging Face layout.

A source is what --model takes: `gpt2`, `gpt2-medium`, `gpt2-large`, `gpt2-xl` (downloaded once), `nano`, a folder with
`config.json` and `model.safetensors`, or the name of a repository of the Hugging Face Hub with these files, see hub.py.
Nothing here executes code of a file.
"""

import base64
import json
import re
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data import Tokenizer
from lab.errors import ModelFileError
from lab.run import hub
from lab.run.hub import DEFAULT_CACHE, PRETRAINED, WEIGHTS
from lab.run.vocabulary import Encoding, gpt2_tokenizer, is_own
from lab.tasks import TASKS
from model import GPT, GPTConfig

NANO = Path(__file__).parents[1] / "assets" / "nano"  # made by lab/nano.py
NANO_VOCABULARY = NANO.with_name("nano.tiktoken")
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # how GPT-2 cuts text into words

SIZES = {
    "gpt2": GPTConfig(),
    "gpt2-medium": GPTConfig(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPTConfig(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPTConfig(n_embd=1600, n_layer=48, n_head=25),
}

# What GPT-2 is, among the models that its config.json could describe: the values of a key that mean it.
PLAIN = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one function
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}

# ---------------------------------------------------------------------- where everything starts


def pretrained(source: str | Path, cache_dir: str | Path = DEFAULT_CACHE, why: str = "") -> tuple[GPT, Tokenizer]:
    """The model of a source, its vocabulary grown by ANS, PAD and the task slots, and its tokenizer.

    why: the reason for this model, which is printed before a download. Raises ModelFileError, DataError."""
    if source in PRETRAINED and Path(source).is_dir():
        print(f"note     {source} is OpenAI's model; the folder of this name is ./{source}")
    tokenizer = tokenizer_of(source)  # before 548 MB are downloaded
    model = load_gpt(source, cache_dir, why)
    rows = model.config.vocab_size
    of_a_run = source not in PRETRAINED and "task_slots" in read_object(needed(source, "config.json"))
    if rows > tokenizer.n_base and not of_a_run:
        model.wte = torch.nn.Embedding.from_pretrained(model.wte.weight.data[: tokenizer.n_base], freeze=False)
        model.config.vocab_size = tokenizer.n_base
        print(
            f"note     {source}: {rows - tokenizer.n_base} rows beyond the {tokenizer.n_base} tokens are cut (padding)"
        )
    if model.config.vocab_size == tokenizer.n_base:
        model.grow_vocab(tokenizer.n_vocab - tokenizer.n_base)
    if model.config.vocab_size != tokenizer.n_vocab:
        raise ModelFileError(f"{source}: the model has {rows} tokens, but its tokenizer has {tokenizer.n_base}")
    return model, tokenizer


def load_student(folder: str | Path) -> tuple[GPT, Tokenizer, dict]:
    """A model folder that a run has written -> the model, its tokenizer with the tasks' slots, its config.json.

    Raises ModelFileError, DataError."""
    folder = Path(folder)
    if (folder / "summary.json").exists():
        raise ModelFileError(f"{folder}: a run; its model is {folder / 'model'}")
    model, tokenizer = load_gpt(folder), tokenizer_of(folder)
    path = folder / "config.json"
    config = read_object(path)
    slots, budgets = config.get("task_slots"), config.get("answer_budgets", {})
    if model.config.vocab_size != tokenizer.n_vocab:
        raise ModelFileError(f"{folder}: no model of a run: {model.config.vocab_size} tokens, not {tokenizer.n_vocab}")
    if not isinstance(slots, dict) or not all(type(i) is int and tokenizer.is_task(i) for i in slots.values()):
        raise ModelFileError(f"{path}: no model of a run: it has no task_slots with a token for each task")
    longest = model.config.n_positions
    numbers = [config.get("max_len", longest), *(budgets.values() if isinstance(budgets, dict) else [0])]
    if any(type(n) is not int or not 0 < n <= longest for n in numbers):
        raise ModelFileError(f"{path}: max_len and answer_budgets must be numbers from 1 to {longest}")
    tokenizer.slots |= slots
    return model, tokenizer, config


# ---------------------------------------------------------------------- weights in and out


def load_gpt(source: str | Path, cache_dir: str | Path = DEFAULT_CACHE, why: str = "") -> GPT:
    """The GPT-2 of a source, in float32, with the vocabulary of the file, which is downloaded if it is not here.

    Raises ModelFileError, which names the file and the key."""
    config = SIZES[source] if source in PRETRAINED else read_config(needed(source, "config.json"))
    paths = weight_files(source, cache_dir, why)
    try:
        return GPT.from_openai(config, {key: p for path in paths for key, p in read_weights(path).items()})
    except ModelFileError:
        raise
    except ValueError as e:
        raise ModelFileError(f"{paths[0]}: {e}") from None


def weight_files(source: str | Path, cache_dir: str | Path = DEFAULT_CACHE, why: str = "") -> list[Path]:
    """The safetensors files of a source, downloaded if they are not here: one, or several that an index names.

    Raises ModelFileError."""
    if source in PRETRAINED:
        return [hub.pinned_weights(source, cache_dir, why)]
    if path := find(source, WEIGHTS, cache_dir, why):
        return [path]
    if index := find(source, f"{WEIGHTS}.index.json", cache_dir):
        names = read_object(index).get("weight_map")
        names = sorted(set(map(str, names.values()))) if isinstance(names, dict) and names else [""]
        if wrong := [name for name in names if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name)]:
            raise ModelFileError(f"{index}: weight_map must name files beside it for all keys, not {wrong[0]!r:.80}")
        return [needed(source, name, cache_dir, why) for name in names]
    pickles = [] if hub.is_name(source) else list(folder_of(source).glob("pytorch_model*.bin"))
    if pickles or hub.is_name(source):
        which = f"{pickles[0]} is a pickle, which may run code" if pickles else f"{source}: there is no {WEIGHTS}"
        raise ModelFileError(f"{which}; where pytorch_model.bin is, turn it into {WEIGHTS}: {CONVERT}")
    return [needed(source, WEIGHTS)]


CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    "w = torch.load('pytorch_model.bin', weights_only=True); "
    "s.save_file({k: v.contiguous().clone() for k, v in w.items()}, 'model.safetensors')\""
)


def find(source: str | Path, name: str, cache_dir: str | Path = DEFAULT_CACHE, why: str = "") -> Path | None:
    """A file of a folder or, downloaded if it is not here, of a repository; None if there is none of this name."""
    if hub.is_name(source):
        return hub.repository_file(source, name, cache_dir, why)
    path = folder_of(source) / name
    return path if path.is_file() else None  # reading a pipe would block


def needed(source: str | Path, name: str, cache_dir: str | Path = DEFAULT_CACHE, why: str = "") -> Path:
    """As find, but raises ModelFileError if there is none."""
    if path := find(source, name, cache_dir, why):
        return path
    place = f"{source}: {name}" if hub.is_name(source) else folder_of(source) / name
    raise ModelFileError(f"{place} is missing; a model folder holds config.json and {WEIGHTS}")


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
        save_file(model.to_openai(dtype), folder / WEIGHTS, metadata={"format": "pt"})
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
        raise ModelFileError(f"{path} is missing; a model folder holds config.json and {WEIGHTS}") from None
    except (SafetensorError, OSError) as e:
        raise ModelFileError(f"{path} is not a whole safetensors file: {e}") from None


def read_object(path: Path) -> dict:
    """The JSON object of a config.json. Raises ModelFileError."""
    try:
        if not path.is_file():  # reading a pipe would block
            raise FileNotFoundError
        value = json.loads(path.read_text(encoding="utf-8-sig"))  # perhaps with a byte order mark
    except FileNotFoundError:
        raise ModelFileError(f"{path} is missing; a model folder holds config.json and {WEIGHTS}") from None
    except (ValueError, RecursionError, OSError) as e:
        raise ModelFileError(f"{path} can't be read as JSON: {e}") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path}: a JSON object is expected")
    return value


def read_config(path: Path) -> GPTConfig:
    """The GPTConfig of a Hugging Face `config.json`. Raises ModelFileError if it is not that of a plain GPT-2."""
    raw = read_object(path)
    for key, values in PLAIN.items():
        if raw.get(key, values[0]) not in values:
            raise ModelFileError(f"{path}: {key} = {raw[key]!r}, but GPT-2 has {values[0]!r}")
    shape = {}
    for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        value = raw.get(key)
        if type(value) is not int or not 0 < value < 2**24:
            raise ModelFileError(f"{path}: {key} must be a positive number, not {value!r}")
        shape[key] = value
    if (n := raw.get("n_inner")) not in (None, 4 * shape["n_embd"]):
        raise ModelFileError(f"{path}: n_inner = {n!r}, but GPT-2 has 4 * n_embd = {4 * shape['n_embd']}")
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


# ---------------------------------------------------------------------- tokenizers


def nano_tokenizer() -> Tokenizer:
    """The project's own 4,001 tokens (bytes, merges learned on text of the tasks, EOS), which need no download."""
    lines = NANO_VOCABULARY.read_text(encoding="ascii").splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
    special = {"<|endoftext|>": len(ranks)}
    encoding = Encoding("nano", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
    return Tokenizer(encoding, TASKS)


def tokenizer_of(source: str | Path) -> Tokenizer:
    """The tokenizer of a source: the one that its config.json names, else GPT-2's.

    The registered tasks have its first slots, in their order. Raises ModelFileError, DataError; ModelFileError, too, if
    the source has a tokenizer of its own and that is another one."""
    if source in PRETRAINED:
        return gpt2_tokenizer()
    path = needed(source, "config.json")
    config = read_object(path)
    name = config.get("tokenizer", "gpt2")
    if name not in ("gpt2", "nano"):
        raise ModelFileError(f"{path}: tokenizer {name!r} is not known (gpt2 and nano are)")
    tokenizer = nano_tokenizer() if name == "nano" else gpt2_tokenizer()
    check_tokenizer(source, config, tokenizer)
    return tokenizer


def check_tokenizer(source: str | Path, config: dict, tokenizer: Tokenizer) -> None:
    """Raises ModelFileError unless a source's own files, as far as it has them, are of this tokenizer."""
    eos = config.get("eos_token_id")
    if eos not in (None, tokenizer.eos_id, [tokenizer.eos_id]):
        wanted = f"{tokenizer.name}'s is {tokenizer.eos_id}"
        raise ModelFileError(f"{find(source, 'config.json')}: eos_token_id = {eos!r:.80}, but {wanted}")
    found = False
    for name in ("tokenizer.json", "vocab.json"):
        # a repository is asked for the second only if it lacks the first: a cache may know of one of them alone
        if (found and hub.is_name(source)) or not (path := find(source, name)):
            continue
        found, vocabulary = True, read_object(path)
        if name == "tokenizer.json":
            model = vocabulary.get("model")
            plain = isinstance(model, dict) and model.get("type") == "BPE" and not vocabulary.get("normalizer")
            vocabulary = model.get("vocab") if plain else None
        if not is_own(vocabulary, tokenizer):
            raise ModelFileError(
                f"{path}: not the tokenizer {tokenizer.name}; models with other vocabularies can't be used"
            )
    if not (found or "tokenizer" in config):
        print(f"note     {source} has no tokenizer.json or vocab.json: its tokens are taken to be GPT-2's")
