"""What the tests share. python -m pytest

Most tests need nothing but a byte tokenizer and a tiny random model. Tests of the released code's numbers and of real
data read `../shared` beside the project, and are skipped, with this reason, where it is not there.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path

import pytest
import tiktoken
import torch

from data import Tokenizer
from model import GPT, GPTConfig

SHARED = Path(__file__).resolve().parents[2] / "shared"
VOCAB_BPE = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"

torch.set_num_threads(1)  # tiny models: more threads only wait for each other
if "TIKTOKEN_CACHE_DIR" not in os.environ and (SHARED / "tiktoken_cache").is_dir():
    os.environ["TIKTOKEN_CACHE_DIR"] = str(SHARED / "tiktoken_cache")


@pytest.fixture(scope="session")
def shared():
    if not SHARED.is_dir():
        pytest.skip("needs the released code's numbers and the data pack in ../shared")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared):
    return lambda name: json.loads((shared / "golden" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def gpt2_tok():
    cache = os.environ.get("TIKTOKEN_CACHE_DIR", os.path.join(tempfile.gettempdir(), "data-gym-cache"))
    if not (Path(cache) / hashlib.sha1(VOCAB_BPE.encode()).hexdigest()).exists():
        pytest.skip("needs GPT-2's vocabulary, which tiktoken has not downloaded yet")
    return Tokenizer.gpt2()


def byte_tokenizer():
    """256 bytes and EOS; it carries GPT-2's name so that whole runs can use it in GPT-2's place."""
    ranks = {bytes([i]): i for i in range(256)}
    return Tokenizer(
        tiktoken.Encoding("gpt2", pat_str=r"(?s).", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 256})
    )


@pytest.fixture
def tok():
    return byte_tokenizer()


def tiny(vocab=257, seed=0, **shape):
    torch.manual_seed(seed)
    shape = {"n_positions": 96, "n_embd": 32, "n_layer": 2, "n_head": 4} | shape
    model = GPT(GPTConfig(vocab_size=vocab, **shape))
    with torch.no_grad():  # far from the tiny initial logits, so that what is compared has contrast
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(8)
    return model


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A place for whole runs: two small tasks, a tiny model folder with a byte vocabulary, and the options for them."""
    monkeypatch.setattr(Tokenizer, "gpt2", staticmethod(byte_tokenizer))
    rows = {
        "colors": [(f"a {c} {thing}", "color?", c) for thing in ("car", "hat", "dog") for c in ("red", "blue", "tan")],
        "sizes": [(f"one {s} {thing}", "size?", s) for thing in ("box", "cup") for s in ("big", "wee", "tall", "fat")],
    }
    for task, examples in rows.items():
        (tmp_path / task).mkdir()
        for split in ("train", "test"):
            lines = [json.dumps(dict(zip(("context", "question", "answer"), e))) for e in examples]
            (tmp_path / task / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    GPT(GPTConfig(vocab_size=257, n_positions=64, n_embd=32, n_layer=2, n_head=2)).save_pretrained(tmp_path / "tiny")
    order = f"{tmp_path / 'colors'},{tmp_path / 'sizes'}"
    common = ["--order", order, "--model", str(tmp_path / "tiny"), "--runs-dir", str(tmp_path / "runs")]
    return [*common, "--epochs", "2", "--lr", "0.01", "--gamma", "0.5", "--device", "cpu"]
