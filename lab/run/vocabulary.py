"""GPT-2's vocabulary: from where it is taken, and whether a model folder has it, too.

In vocab.json each token is written with one letter for each of its bytes, and its id is the rank of its merge. So this
file alone is the vocabulary.
"""

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path

import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from data import Tokenizer
from lab.errors import DataError, ModelFileError
from lab.run import hub
from lab.tasks import TASKS

TIKTOKEN = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"  # from where tiktoken downloads it
TIKTOKEN_FILES = ("vocab.bpe", "encoder.json")
END = "<|endoftext|>"
LONG_TEXT = 10**5  # characters
LONG_RUN = re.compile(r"([^\S\x1c-\x1f]{1000,})(?=[^\S\x1c-\x1f])")  # white space, as Unicode and tiktoken define it


class Encoding(tiktoken.Encoding):
    """tiktoken's, but for a million blanks in a row, which exceed the stack of its regex."""

    def encode_ordinary(self, text: str) -> list[int]:
        if len(text) < LONG_TEXT:
            return super().encode_ordinary(text)
        parts = re.split(LONG_RUN, text)  # text, run, text, ...; a run, but for its last blank, is one piece
        encode = super().encode_ordinary, self._encode_single_piece
        return [id for i, part in enumerate(parts) for id in encode[i % 2](part)]


def gpt2_tokenizer() -> Tokenizer:
    """GPT-2's own vocabulary: from tiktoken's cache, else from the hub, else from tiktoken's address.

    Raises DataError, which says what to do offline."""
    ways, errors = [from_hub, from_tiktoken], []
    if in_tiktoken_cache():
        ways.reverse()
    elif hub.is_offline():
        ways.pop()
    for way in ways:
        try:
            return Tokenizer(way(), TASKS)
        except (OSError, ValueError) as e:  # no network, a wrong checksum; a ModelFileError is a ValueError, too
            errors.append(str(e) if isinstance(e, ModelFileError) else f"tiktoken: {type(e).__name__}")
    names = " and ".join(f"{name} as {tiktoken_name(name)}" for name in TIKTOKEN_FILES)
    other = f"or set TIKTOKEN_CACHE_DIR to a folder that has, of {TIKTOKEN}, {names}"
    raise DataError(f"can't get GPT-2's vocabulary: {'; '.join(errors)}; {other}")


def tiktoken_name(file: str) -> str:
    """The name of a file in tiktoken's cache: the SHA-1 of its address."""
    return hashlib.sha1((TIKTOKEN + file).encode()).hexdigest()


def in_tiktoken_cache() -> bool:
    """Has tiktoken downloaded the vocabulary before? By the variables and the default that tiktoken has."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    return all(Path(folder, tiktoken_name(file)).is_file() for file in TIKTOKEN_FILES)


def from_tiktoken() -> Encoding:
    gpt2 = tiktoken.get_encoding("gpt2")
    ranks, special = gpt2._mergeable_ranks, gpt2._special_tokens
    return Encoding("gpt2", pat_str=gpt2._pat_str, mergeable_ranks=ranks, special_tokens=special)


def from_hub() -> Encoding:
    vocabulary = json.loads(hub.pinned_vocabulary().read_text(encoding="utf-8"))
    byte_of = {letter: byte for byte, letter in letters().items()}
    special = {END: vocabulary.pop(END)}
    ranks = {bytes(byte_of[letter] for letter in token): rank for token, rank in vocabulary.items()}
    return Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def letters() -> dict[int, str]:
    """The letter by which GPT-2's files write each byte: its own if it is printed, else one from 256 on."""
    printed = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def is_own(vocabulary, tokenizer: Tokenizer) -> bool:
    """Is a model folder's vocabulary, {token in GPT-2's letters: id}, that of the tokenizer?"""
    letter = letters()
    raw = map(tokenizer.encoding.decode_single_token_bytes, range(tokenizer.n_base))
    return vocabulary == {"".join(letter[byte] for byte in token): id for id, token in enumerate(raw)}
