"""GPT-2, from scratch: modules, weights in and out, a larger vocabulary, batched generation.

The model of Section 3.1 (Radford et al. 2019): pre-norm blocks, tanh GELU, learned positions, a head tied to the
token embedding. Parameters carry OpenAI's names, so weights load by name.

Letters in every file: B rows (b: those still going), T time, C embedding, V vocabulary, H heads, L layers, K beams, N
tokens one after another, S supervised ones (in the cache: columns).

    python model.py     shows a text on its way through the tiny one of lab/assets
"""

import copy
import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from http.client import HTTPException
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lab import ranks
from lab.rundir import one_at_a_time

HUB = "https://huggingface.co/openai-community"
PRETRAINED = {  # name -> (address, SHA-256 where one is published)
    "gpt2": (
        f"{HUB}/gpt2/resolve/607a30d783dfa663caf39e06633721c8d4cfcd7e/model.safetensors",
        "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    ),
    "gpt2-medium": (f"{HUB}/gpt2-medium/resolve/main/model.safetensors", None),
    "gpt2-large": (f"{HUB}/gpt2-large/resolve/main/model.safetensors", None),
    "gpt2-xl": (f"{HUB}/gpt2-xl/resolve/main/model.safetensors", None),
}
DEFAULT_CACHE = "~/.cache/l2kd"
CACHE_BYTES, MAX_ROWS = 2**31, 256  # what the keys and values of one chunk of prompts may take; its rows
BLOCK_ROWS = 8  # rows that share a block of attention, whatever their lengths
PREFILL_TOKENS = 1024  # prompt tokens that go through the model at once
PLAIN = {"model_type": "gpt2", "activation_function": "gelu_new", "n_inner": None, "scale_attn_weights": True}
PLAIN |= {"scale_attn_by_inverse_layer_idx": False}  # a config.json that says otherwise is another model's
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # stored (in, out), used (out, in)


class ModelFileError(ValueError):
    """A model folder, weight file or download that can't be used; the message says which and what to do."""


@dataclass
class GPTConfig:
    """The shape of a GPT-2, under the names of a Hugging Face `config.json`; the default is the 124M model."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    dropout: float = 0.1  # residual, embedding and attention dropout alike
    layer_norm_epsilon: float = 1e-5


SIZES = {
    "gpt2": GPTConfig(),
    "gpt2-medium": GPTConfig(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPTConfig(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPTConfig(n_embd=1600, n_layer=48, n_head=25),
}


def move(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To the device; a GPU is not waited for."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


@dataclass
class Packing:
    """Rows of different lengths as N tokens one after another. Padding exists inside attention alone, and there is
    little of it: neighbours form blocks of R padded rows, 8 whatever their lengths, more only of similar length.

        row 0    The dog .  ~
        row 1    A   b   c  d       The dog . A b c d      position  0 1 2 0 1 2 3
                                                           at        0 1 2 4 5 6 7      block  (7 tokens, R = 2, T = 4)
    """

    position: torch.Tensor  # (N,): of each token in its row
    at: torch.Tensor  # (N,): its place among the R · T of its block
    blocks: list[tuple[int, int, int]]  # tokens, rows R, time T

    @classmethod
    def of(cls, lengths: list[int]) -> "Packing":
        """The packing of rows of these lengths, on the CPU."""
        groups = []
        for n in lengths:
            similar = groups and 0.75 <= n / groups[-1][0] <= 1 / 0.75  # at most a quarter is padding
            if groups and (len(groups[-1]) < BLOCK_ROWS or similar):
                groups[-1].append(n)
            else:
                groups.append([n])
        position = torch.cat([torch.arange(n) for n in lengths])
        first = [i * max(group) for group in groups for i in range(len(group))]  # the place of each row
        at = position + torch.tensor(first).repeat_interleave(torch.tensor(lengths))
        return cls(position, at, [(sum(group), len(group), max(group)) for group in groups])

    def to(self, device: torch.device) -> "Packing":
        return Packing(move(self.position, device), move(self.at, device), self.blocks)

    @torch.compiler.disable  # the number of blocks changes from batch to batch
    def each(self, function, x):
        """The function of each block of x (N, D), as (R, T, D) padded with zeros, and of its rows -> packed again."""
        out, rows, sizes = [], 0, [n for n, _, _ in self.blocks]
        for part, at, (_, R, T) in zip(x.split(sizes), self.at.split(sizes), self.blocks):
            padded = part.new_zeros(R * T, part.size(1)).index_copy(0, at, part).view(R, T, -1)
            out.append(function(padded, slice(rows, rows + R)).flatten(0, 1).index_select(0, at))
            rows += R
        return torch.cat(out)


class KVCache:
    """Keys and values of the tokens seen so far. Row b holds `length[b]` of them, from column 0 on, and writes its
    next token at column `length[b]`; columns beyond are zero or padding, and are never attended to.

         column   0   1   2   3   4
         row 0    The dog .   ~   ~      length 3, ~ hidden
         row 1    A   b   c   d   ~      length 4
    """

    def __init__(self, model: "GPT", rows: int, columns: int):
        c, kind = model.config, model.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.wte.weight.dtype
        shape = (2, c.n_layer, rows, c.n_head, columns, c.n_embd // c.n_head)  # (2, L, B, H, S, C/H)
        self.kv = torch.zeros(shape, dtype=dtype, device=model.device)
        self.length = torch.zeros(rows, dtype=torch.long, device=model.device)  # (B,)
        self.used = columns

    def fill(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Write whole prompts, k and v (B, H, T, C/H), padding included, from column 0 on."""
        self.kv[0, layer, :, :, : k.size(2)], self.kv[1, layer, :, :, : v.size(2)] = k, v

    def expect(self, used: int) -> None:
        """Before the next token of each row: the columns in use once it is in, and those that it may see."""
        self.used, self.rows = used, torch.arange(len(self.length), device=self.length.device)
        visible = torch.arange(used, device=self.length.device) <= self.length[:, None]
        self.visible = visible[:, None, None]  # (B, 1, 1, used)

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor):
        """Write one token a row, k and v (B, H, 1, C/H); return all keys and values, (B, H, used, C/H)."""
        # `layer`, `rows` and `length` stand apart from each other: their dimension, B, then comes first
        self.kv[:, layer, self.rows, :, self.length] = torch.stack([k[:, :, 0], v[:, :, 0]], dim=1)  # (B, 2, H, C/H)
        return self.kv[:, layer, :, :, : self.used].unbind(0)

    def part(self, rows: slice) -> "KVCache":
        """Some of the rows, in the same memory."""
        part = copy.copy(self)
        part.kv, part.length = self.kv[:, :, rows], self.length[rows]
        return part

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with `rows` (b,) alone, in their order; a row named twice becomes two."""
        if len(rows) > self.kv.size(2):
            self.kv = self.kv.index_select(2, rows)
        else:  # in the memory that is there, a layer at a time: fresh memory costs more than the copy
            for kv in self.kv[..., : self.used, :].unbind(1):  # (2, B, H, used, C/H)
                kv[:, : len(rows)] = kv.index_select(1, rows)
            self.kv = self.kv[:, :, : len(rows)]
        self.length = self.length[rows]


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.n_head, self.dropout, self.layer = config.n_head, config.dropout, layer

    def forward(self, x, packing: Packing | None = None, cache: KVCache | None = None):
        """x (B, T, C) or packed (N, C), and the result like it; the rest as in GPT.hidden."""
        qkv = self.c_attn(x)
        if packing:
            y = packing.each(lambda z, rows: self.attend(z, fill=cache and cache.part(rows)), qkv)
        else:
            y = self.attend(qkv, cache)
        return F.dropout(self.c_proj(y), self.dropout, self.training)

    def attend(self, qkv, cache: KVCache | None = None, fill: KVCache | None = None):
        """(B, T, 3C) -> (B, T, C): whole rows, kept in the cache to `fill`; or one token a row, against its cache."""
        B, T, _ = qkv.size()
        q, k, v = (z.view(B, T, self.n_head, -1).transpose(1, 2) for z in qkv.chunk(3, dim=2))  # (B, H, T, C/H)
        if cache:
            k, v = cache.append(self.layer, k, v)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=cache.visible)
        else:  # padding stands on the right, where causal attention never looks
            if fill:
                fill.fill(self.layer, k, v)
            p = self.dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return y.transpose(1, 2).reshape(B, T, -1)


class MLP(nn.Module):
    """C -> 4C -> C with the tanh approximation of GELU that GPT-2 was trained with."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = config.dropout

    def forward(self, x):
        x = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    """Pre-norm: the residual stream is only ever added to."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x, packing=None, cache=None):
        x = x + self.attn(self.ln_1(x), packing, cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2. `model(ids)` gives logits (B, T, V); `hidden` and `head` are its two halves, so that a loss can project
    only the positions that it supervises."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config = replace(config)  # its own: growing must not change another model's
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        for name, p in self.named_parameters():  # as OpenAI initialised it; layer norms are 1 and 0 already
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() == 2:
                std = 0.01 if name == "wpe.weight" else 0.02
                if name.endswith("c_proj.weight"):  # two residual additions a layer: keep their sum at unit scale
                    std /= math.sqrt(2 * config.n_layer)
                nn.init.normal_(p, std=std)

    @property
    def device(self):
        return self.wte.weight.device

    def hidden(self, ids, packing: Packing | None = None, cache: KVCache | None = None):
        """ids (B, T) -> final hidden states (B, T, C), after the last layer norm; or packed, (N,) -> (N, C).

        Packed rows fill a cache from column 0 on (prefill). With a cache but no packing T is 1, and each row
        goes on where it stands in the cache, which has been told to `expect` that."""
        T = max(T for _, _, T in packing.blocks) if packing else ids.size(1)
        if T > self.config.n_positions:
            raise ValueError(f"a sequence of {T} tokens is longer than the context of {self.config.n_positions}")
        if packing:
            positions = packing.position
        else:
            positions = torch.arange(T, device=ids.device) if cache is None else cache.length[:, None]
        positions = positions.clamp(max=self.config.n_positions - 1)  # a finished row may wait at the context's end
        x = F.dropout(self.wte(ids) + self.wpe(positions), self.config.dropout, self.training)
        for block in self.h:
            x = block(x, packing, cache)
        return self.ln_f(x)

    def head(self, hidden):
        """Hidden states (..., C) -> logits (..., V), through the embedding matrix (tied)."""
        return F.linear(hidden, self.wte.weight)

    def forward(self, ids):
        return self.head(self.hidden(ids))

    def grow_vocab(self, n: int) -> "GPT":
        """Add n tokens. Their rows start at the mean of the old ones: under the tied head a small random row would
        get a logit near 0, far above that of most trained tokens."""
        old = self.wte.weight.data
        rows = torch.cat([old, old.mean(dim=0, keepdim=True).expand(n, -1)])
        self.wte = nn.Embedding.from_pretrained(rows, freeze=False)
        self.config.vocab_size += n
        return self

    # ------------------------------------------------------------------ weights in and out

    @classmethod
    def from_pretrained(cls, x: str | Path, cache_dir: str | Path = DEFAULT_CACHE) -> "GPT":
        """A pretrained GPT-2 in float32, vocabulary as in the file.

        x: `gpt2`, `gpt2-medium`, `gpt2-large`, `gpt2-xl` (downloaded once into cache_dir) or a folder in the
        Hugging Face layout (`config.json`, `model.safetensors`). Raises ModelFileError, which names the file and key.
        """
        if x in PRETRAINED:
            config, path = GPTConfig(**asdict(SIZES[x])), download(str(x), cache_dir)
        else:
            config, path = read_config(Path(x) / "config.json"), Path(x) / "model.safetensors"
        weights = read_weights(path)
        if config.n_layer > len(weights):
            raise ModelFileError(f"{path}: its config names n_layer = {config.n_layer}, it has {len(weights)} tensors")
        with torch.device("meta"):  # shapes only: a lying config costs no memory
            model = cls(config)
        for key, p in model.state_dict().items():
            if key not in weights:
                raise ModelFileError(f"{path}: key {key!r} is missing")
            if key.endswith(CONV1D):
                weights[key] = weights[key].t()
            if weights[key].shape != p.shape:
                found, wanted = tuple(weights[key].shape), tuple(p.shape)
                raise ModelFileError(f"{path}: {key!r} has shape {found}, the config needs {wanted} (used as out, in)")
            weights[key] = weights[key].float().contiguous()
        head = weights.pop("lm_head.weight", None)
        if head is not None and not torch.equal(head.float(), weights["wte.weight"]):
            raise ModelFileError(f"{path}: 'lm_head.weight' differs from 'wte.weight'; GPT-2's head is tied")
        if extra := sorted(set(weights) - set(model.state_dict())):
            raise ModelFileError(f"{path}: unknown key {extra[0]!r} (and {len(extra) - 1} more)")
        model.load_state_dict(weights, assign=True)
        return model

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32, **extra) -> None:
        """Write `config.json` (with `extra`, plain JSON values) and `model.safetensors`, as transformers reads them."""
        folder, c = Path(folder), asdict(self.config)
        folder.mkdir(parents=True, exist_ok=True)
        p = c.pop("dropout")
        c |= {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new"}
        c |= {"resid_pdrop": p, "embd_pdrop": p, "attn_pdrop": p, "n_ctx": c["n_positions"]}
        c |= {"bos_token_id": extra.get("eos_token_id"), "tie_word_embeddings": True} | extra
        weights = {}
        for key, p in self.state_dict().items():
            p = p.detach().to("cpu", dtype)
            weights["transformer." + key] = (p.t() if key.endswith(CONV1D) else p).contiguous()
        try:
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as e:  # that is how it says that the disk is full
            raise OSError(f"{folder}: {e}") from None
        (folder / "config.json").write_text(json.dumps(c, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_config(path: Path) -> GPTConfig:
    """The GPTConfig of a Hugging Face `config.json`. Raises ModelFileError for what is not a plain GPT-2."""
    try:
        if not path.is_file():  # a pipe, say, would be waited for
            raise FileNotFoundError
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFileError(f"{path} is missing; a model folder holds config.json and model.safetensors") from None
    except (ValueError, RecursionError, OSError) as e:
        raise ModelFileError(f"{path} can't be read as JSON: {e}") from None
    if not isinstance(raw, dict):
        raise ModelFileError(f"{path}: a JSON object is expected")
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
    return GPTConfig(**shape)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, without the `transformer.` prefix and the causal-mask buffers."""
    try:
        if not path.is_file():
            raise FileNotFoundError
        weights = load_file(path)
    except FileNotFoundError:
        raise ModelFileError(f"{path} is missing; a model folder holds config.json and model.safetensors") from None
    except (SafetensorError, OSError) as e:
        raise ModelFileError(f"{path} is not a whole safetensors file: {e}") from None
    weights = {key.removeprefix("transformer."): p for key, p in weights.items()}
    return {key: p for key, p in weights.items() if not key.endswith((".attn.bias", ".attn.masked_bias"))}


def download(name: str, cache_dir: str | Path) -> Path:
    """The weight file of a pretrained model, downloaded into the cache folder if it is not there yet."""
    url, sha256 = PRETRAINED[name]
    path = Path(cache_dir).expanduser() / "models" / name / "model.safetensors"
    part = path.with_suffix(".part")
    if path.exists():
        return path
    try:
        with one_at_a_time(path):
            if path.exists():
                return path
            print(f"downloading {url} to {path}")
            try:
                torch.hub.download_url_to_file(url, str(part), hash_prefix=sha256)
                read_weights(part)  # a file that was cut off does not get its final name
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
            if sha256 is None:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                print(f"no checksum is published for {name}; this file's SHA-256 is {digest}")
    except (OSError, RuntimeError, HTTPException, ModelFileError) as e:
        hint = f"put the file there yourself, or run offline with --model FOLDER (or --model nano): {path}"
        raise ModelFileError(f"can't download {url} ({e}); {hint}") from None
    return path


# ---------------------------------------------------------------------- generation


def top_k_filter(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Logits (..., V) with all below the k-th largest of their row at -inf; ties with it stay; k <= 0 keeps all."""
    if k <= 0:
        return logits
    kth = logits.topk(min(k, logits.size(-1)), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < kth, -math.inf)


def next_token(logits, u, top_k, temperature):
    """One token a row (B,) from logits (B, V): the likeliest, or the inverse of the CDF at u (B,) in [0, 1)."""
    if top_k is None:
        return logits.max(dim=-1).indices  # the first of equals, as argmax finds it, in less time
    k = top_k if 0 < top_k < logits.size(-1) else logits.size(-1)
    values, ids = logits.topk(k)  # (B, k): the rest has probability 0 ...
    kept = int((logits >= values[:, -1:]).sum(dim=-1).max())
    if kept > k:  # ... but for ties with the k-th
        values, ids = top_k_filter(logits, k).topk(kept)
    # in double precision on the CPU, so that one random number means one token wherever the logits come from
    cdf = (values.cpu().double() / temperature).softmax(dim=-1).cumsum(dim=-1)
    j = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True).clamp(max=cdf.size(-1) - 1)
    return ids.gather(1, j.to(ids.device))[:, 0]


def cut(model, prompts, max_new_tokens, beams=1):
    """The new tokens that each prompt may get, and the prompts' numbers in chunks: the longest first, and as many in a
    chunk as keep rows x columns of its cache within the budget, with `beams` rows a prompt."""
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if not prompt or len(prompt) + max(limit, 1) - 1 > model.config.n_positions:
            wanted = f"1 token or more, and at most {model.config.n_positions} with the new ones"
            raise ValueError(f"prompt {i} has {len(prompt)} tokens and {limit} to come: needs {wanted}")
    columns = [len(prompt) + limit for prompt, limit in zip(prompts, limits)]
    todo = sorted((i for i in range(len(prompts)) if limits[i] > 0), key=lambda i: (columns[i], i))
    column_bytes = 4 * 2 * model.config.n_layer * model.config.n_embd  # 4 bytes a number, keys and values
    budget = CACHE_BYTES // column_bytes  # columns that all rows of a chunk may have together
    chunks = []
    while todo:
        n = max(1, min(MAX_ROWS, budget // columns[todo[-1]]) // beams)
        chunks.append(todo[-n:])
        todo = todo[:-n]
    return limits, chunks


@torch.compiler.set_stance("force_eager")  # blocks that were compiled for training: here each step has another shape
@torch.no_grad()
def generate(model, prompts, max_new_tokens, stop_id, top_k=None, temperature=1.0, generator=None):
    """Continue every prompt until `stop_id` (kept) or `max_new_tokens` (an int, or one a prompt).

    prompts: lists of token ids, of any lengths; the result is a list of lists of new ids, row i for prompt i.
    Greedy when top_k is None. Otherwise each row samples with random numbers of its own, seeded one a prompt from
    `generator` (a CPU generator), so a row does not depend on its batch mates. Raises ValueError for an empty prompt
    or one that does not fit into the context together with its new tokens."""
    limits, chunks = cut(model, prompts, max_new_tokens)
    seeds = torch.randint(2**62, (len(prompts),), generator=generator).tolist() if top_k is not None else None
    was_training = model.training
    model.eval()
    out = [[] for _ in prompts]
    for chunk in ranks.own_chunks(chunks):
        u = None
        if top_k is not None:  # (B, steps): the random numbers of a row are a function of its seed alone
            streams = [torch.Generator().manual_seed(seeds[i]) for i in chunk]
            u = [torch.rand(limits[i], generator=g, dtype=torch.double) for i, g in zip(chunk, streams)]
            u = nn.utils.rnn.pad_sequence(u, batch_first=True)
        pick = partial(next_token, top_k=top_k, temperature=temperature)
        for i, new in zip(
            chunk, decode(model, [prompts[i] for i in chunk], [limits[i] for i in chunk], stop_id, pick, u)
        ):
            out[i] = new
    model.train(was_training)
    return ranks.whole(out)


def prefill(model, prompts, limits):
    """The hidden state of the last token of each prompt (B, C), and the cache: some prompts in one forward pass, those
    that fit into PREFILL_TOKENS, so that prompts of similar length share it and its memory is bounded."""
    cache = KVCache(model, len(prompts), max(len(p) + limit for p, limit in zip(prompts, limits)))
    cache.length += torch.tensor([len(p) for p in prompts], device=model.device)
    hidden, start = [], 0
    for end in range(1, len(prompts) + 1):
        if end == len(prompts) or sum(map(len, prompts[start : end + 1])) > PREFILL_TOKENS:
            some, packing = prompts[start:end], Packing.of([len(p) for p in prompts[start:end]]).to(model.device)
            ids = torch.tensor([i for p in some for i in p], device=model.device)  # (N,)
            last = cache.length[start:end].cumsum(0) - 1
            hidden.append(model.hidden(ids, packing, cache.part(slice(start, end)))[last])
            start = end
    return torch.cat(hidden), cache


def decode(model, prompts, limits, stop_id, pick, u=None):
    """The new tokens of one chunk of prompts, a token a row at a time."""
    hidden, cache = prefill(model, prompts, limits)
    out = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # the prompts still in the cache, in cache order
    for t in range(max(limits)):
        token = pick(model.head(hidden), None if u is None else u[rows, t])  # (b,)
        going = []
        for j, (row, new) in enumerate(zip(rows, token.tolist())):
            if len(out[row]) < limits[row] and out[row][-1:] != [stop_id]:
                out[row].append(new)
                if new != stop_id and len(out[row]) < limits[row]:
                    going.append(j)
        if not going:
            break
        used = max(len(prompts[rows[j]]) for j in going) + t + 1  # cache columns in use once this token is in
        if len(going) <= 0.75 * len(rows):  # drop finished rows, but copy the cache seldom
            keep = torch.tensor(going, device=model.device)
            cache.keep(keep)
            token, rows, going = token[keep], [rows[j] for j in going], list(range(len(going)))
        cache.expect(used)
        hidden = model.hidden(token[:, None], cache=cache)[:, 0]
        cache.length[going] += 1
    return out


@torch.compiler.set_stance("force_eager")  # blocks that were compiled for training: here each step has another shape
@torch.no_grad()
def beam_search(model, prompts, max_new_tokens, stop_id, beams):
    """The best continuation found with `beams` beams: Section 2.2, the teacher's "beam search output" in Seq-KD.

    Arguments, result and errors as in `generate`, and one beam is its greedy decoding. Raises ValueError also for less
    than one beam, and for more than half the vocabulary: the first step needs two words a beam."""
    if not 1 <= beams <= model.config.vocab_size // 2:
        raise ValueError(f"{beams} beams: needs 1 or more, and at most half of {model.config.vocab_size} words")
    limits, chunks = cut(model, prompts, max_new_tokens, beams)
    was_training = model.training
    model.eval()
    out = [[] for _ in prompts]
    for chunk in ranks.own_chunks(chunks):
        found = decode_beams(model, [prompts[i] for i in chunk], [limits[i] for i in chunk], stop_id, beams)
        for i, new in zip(chunk, found):
            out[i] = new
    model.train(was_training)
    return ranks.whole(out)


def decode_beams(model, prompts, limits, stop_id, beams):
    """The best answer y found to each prompt x of one chunk, by the rules of transformers with `early_stopping=True`.

        score(y) = 1/|y| Σ_t log P(y_t | x, y_<t)        |y| counts the stop token

    A step keeps the best 2K continuations of the K = `beams` beams: up to K of them may be the stop token. Those of the
    best K that stop or reach the limit are answers; the best K that don't stop are the next beams. A prompt is done
    once it has K answers."""
    hidden, cache = prefill(model, prompts, limits)
    answers = [[] for _ in prompts]  # (score, tokens)
    todo = list(range(len(prompts)))  # the prompts still in the cache: a row each at first, then a row for each beam
    y = torch.zeros(len(todo), 0, dtype=torch.long, device=model.device)  # (rows, t)
    total = torch.zeros(len(todo), device=model.device)  # (rows,): Σ_t log P
    for t in range(1, max(limits) + 1):
        logits = model.head(hidden)  # (rows, V)
        log_p = logits.log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        sums = (total[:, None] + log_p).view(len(todo), -1)  # (b, rows / b * V)
        total, index = sums.topk(2 * beams)  # (b, 2K), best first
        index += torch.arange(len(todo), device=index.device)[:, None] * sums.size(1)  # of all (row, word) pairs
        row, token = index // logits.size(1), index % logits.size(1)
        y = torch.cat([y[row], token[:, :, None]], dim=2)  # (b, 2K, t)
        stopped = token == stop_id
        at_limit = torch.tensor([limits[i] == t for i in todo], device=index.device)
        for j, k in (stopped | at_limit[:, None])[:, :beams].nonzero().tolist():
            answers[todo[j]].append((total[j, k].item() / t, y[j, k].tolist()))
        going = [j for j, i in enumerate(todo) if len(answers[i]) < beams]
        if not going:
            break
        todo = [todo[j] for j in going]
        best = stopped[going].int().argsort(dim=1, stable=True)[:, :beams]  # (b, K): the best that don't stop
        at = torch.tensor(going, device=index.device)[:, None], best
        total, y, row = total[at].flatten(), y[at].flatten(0, 1), row[at].flatten()
        cache.keep(row)
        used = max(len(prompts[i]) for i in todo) + t  # cache columns in use once this token is in
        cache.expect(used)
        hidden = model.hidden(y[:, -1:], cache=cache)[:, 0]
        cache.length += 1
    return [max(found)[1] for found in answers]


def show() -> None:
    """A text on its way through the tiny model of lab/assets: ids, shapes, next words, the cache, packed rows."""
    from data import Tokenizer

    model = GPT.from_pretrained(Path(__file__).parent / "lab" / "assets" / "nano").eval()
    tok, c, blocks = Tokenizer.nano(), model.config, sum(p.numel() for p in model.h.parameters())
    print(f"GPT-2 of {c.n_layer} layers, {c.n_head} heads, {c.n_embd} channels, a context of {c.n_positions} tokens")
    for name, n in (("wte", model.wte.weight.numel()), ("wpe", model.wpe.weight.numel()), ("h", blocks)):
        what = {"wte": "tokens: the embedding and, tied, the head", "wpe": "positions", "h": "blocks"}[name]
        print(f"    {name:<4}{n:>10,} parameters    {what}")

    text = "the table has columns coach, year -- what is the coach if year is"
    prompt = tok.encode(text)
    print(f"\n{text}\n    ids {' '.join(map(str, prompt))}")
    print(f"    B, T, C = 1, {len(prompt)}, {c.n_embd}; what each step makes of them (h.1 to h.3 are like h.0):")
    steps = {"wte": model.wte, "h.0.attn": model.h[0].attn, "h.0.mlp": model.h[0].mlp, "h.0": model.h[0]}
    for name, module in (steps | {"ln_f": model.ln_f}).items():
        module.register_forward_hook(lambda _, __, x, name=name: print(f"    {name:<10}{tuple(x.shape)}"))
    ids = torch.tensor([prompt])
    with torch.no_grad():
        logits = model(ids)
        print(
            f"    {'head':<10}{tuple(logits.shape)}    logits over V = {c.vocab_size} words\n\nthe likeliest next words"
        )
        for module in (*steps.values(), model.ln_f):
            module._forward_hooks.clear()
        p, words = logits[0, -1].softmax(dim=-1).topk(5)
        print("    " + ", ".join(f"{tok.decode([i])!r} {x:.2f}" for x, i in zip(p.tolist(), words.tolist())))

        other = ids.clone()
        other[0, -1] = tok.eos_id
        change = (model(other) - logits).abs().amax(dim=-1)[0]
        print(f"\ncausal: with another last token logits change by {change[-1]:.1f} there,", end=" ")
        print(f"by {change[:-1].max():.1f} before it")

        (new,), slow = generate(model, [prompt], 8, tok.eos_id), list(prompt)
        for _ in new:
            slow.append(int(model(torch.tensor([slow]))[0, -1].argmax()))
        same = "the same" if slow[-len(new) :] == new else "others"
        print(f"cached: {tok.decode(new)!r}, a token a step; without a cache {same}")

        rows = [prompt, prompt[:5]]
        packed = model.hidden(torch.tensor([i for row in rows for i in row]), Packing.of([len(row) for row in rows]))
        apart = torch.cat([model.hidden(torch.tensor([row]))[0] for row in rows])
        print(f"packed: rows of {len(rows[0])} and {len(rows[1])} tokens as one of {len(packed)}:", end=" ")
        print(f"hidden states differ by {(packed - apart).abs().max():.0e} from those of each alone")
    prompts = [prompt[:4], prompt[9:12]]
    for seed in (0, 1):
        news = generate(model, prompts, 8, tok.eos_id, top_k=20, generator=torch.Generator().manual_seed(seed))
        print(f"sampled, seed {seed}: " + " | ".join(tok.decode(p + new) for p, new in zip(prompts, news)))


if __name__ == "__main__":
    show()
