"""What the tests share. python -m pytest

Most tests need nothing but the project's own tiny vocabulary and weights (lab/assets). Tests of the authors' numbers
and of real data read `../shared` beside the project, and are skipped, with this reason, where it is not there.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models, and processes side by side: more threads only wait

import torch

from lab.run.pretrained import gpt2_tokenizer, load_gpt, nano_tokenizer

SHARED = Path(__file__).resolve().parents[2] / "shared"
VOCAB_BPE = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"

torch.set_num_threads(1)
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
    return gpt2_tokenizer()


@pytest.fixture
def tok():
    return nano_tokenizer()


def nano(grown=True, noise=0.0):
    """The pretrained nano GPT-2, by default with the vocabulary of `tok`; `noise` makes another model of it."""
    model = load_gpt("nano")
    if grown:
        model.grow_vocab(nano_tokenizer().n_vocab - model.config.vocab_size)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(noise * torch.randn_like(p))
    return model


@pytest.fixture
def lab(tmp_path):
    """A place for whole runs: two small tasks of a user's own, and the options to learn them."""
    rows = {
        "colors": [(f"a {c} {thing}", "color?", c) for thing in ("car", "hat", "dog") for c in ("red", "blue", "tan")],
        "sizes": [(f"one {s} {thing}", "size?", s) for thing in ("box", "cup") for s in ("big", "wee", "tall", "fat")],
    }
    for task, examples in rows.items():
        (tmp_path / task).mkdir()
        for split in ("train", "test"):
            lines = [json.dumps(dict(zip(("context", "question", "answer"), e))) for e in examples]
            (tmp_path / task / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    order = f"{tmp_path / 'colors'},{tmp_path / 'sizes'}"
    common = ["--order", order, "--model", "nano", "--runs-dir", str(tmp_path / "runs"), "--max-len", "48"]
    common += ["--checkpoint-every", "0"]
    return [*common, "--epochs", "2", "--gamma", "0.5", "--device", "cpu", "--no-eval-every-epoch"]


def pytest_collection_modifyitems(items):
    """The notebook first: it takes the longest, and would run alone at the end."""
    items.sort(key=lambda item: "test_notebook" not in item.nodeid)
