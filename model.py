"""GPT-2, from scratch: attention, MLP, block, the tied head, a larger vocabulary, and OpenAI's weights by name.

The model of Section 3.1 (Radford et al. 2019): pre-norm blocks, the tanh form of GELU, learned positions, a head tied
to the token embedding. The modules carry OpenAI's names, so weights load by name.

Letters in every file: B rows, T time, C embedding, V vocabulary, H heads, R rows of a block of attention, N tokens one
after another, S supervised tokens.

    python model.py     shows a text on its way through a tiny GPT-2
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F

from lab.fast.half import centred, product_dtype

CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # OpenAI stores these (in, out), nn.Linear uses (out, in)


@dataclass
class GPTConfig:
    """The shape of a GPT-2, under the names of a Hugging Face `config.json`. The default is the 124M model."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    dropout: float = 0.1  # of the residual stream, the embedding and attention alike
    layer_norm_epsilon: float = 1e-5


def causal(qkv, dropout: float):
    """Each token attends to itself and to those before it: queries, keys, values (3, B, H, T, C/H) -> (B, H, T, C/H).

    softmax(q kᵀ / √(C/H) + mask) v, in one fused kernel. lab/fast has the same for packed rows, and with a cache."""
    q, k, v = qkv
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # queries, keys and values in one matrix
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.n_head, self.dropout = config.n_head, config.dropout

    def forward(self, x, attend=causal):
        B, T, C = x.size()
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        y = attend(qkv, self.dropout if self.training else 0.0)  # (B, H, T, C/H)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    """C -> 4C -> C, with the tanh approximation of GELU that GPT-2 was trained with."""

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

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x, attend=causal):
        x = x + self.attn(self.ln_1(x), attend)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2. `model(ids)` gives the logits. `hidden` and `head` are its two halves, so that a loss can compute the
    logits of the tokens that it supervises, and of no others."""

    causal = staticmethod(causal)  # lab/fast calls it for each block of rows

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config = replace(config)  # a copy, since growing must not change another model's
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        for name, p in self.named_parameters():  # OpenAI's initialisation; layer norms are 1 and 0 already
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() == 2:
                std = 0.01 if name == "wpe.weight" else 0.02
                if name.endswith("c_proj.weight"):  # two additions a layer: their sum stays at unit scale
                    std /= math.sqrt(2 * config.n_layer)
                nn.init.normal_(p, std=std)

    @property
    def device(self):
        return self.wte.weight.device

    def hidden(self, ids, positions=None, attend=causal):
        """ids (B, T) -> final hidden states (B, T, C), after the last layer norm.

        positions (T,) or (B, T): of each token in its row; by default 0, 1, ..., T - 1. attend: see `causal`."""
        if positions is None:
            if ids.size(1) > self.config.n_positions:
                raise ValueError(f"{ids.size(1)} tokens are too long for a context of {self.config.n_positions}")
            positions = torch.arange(ids.size(1), device=ids.device)
        x = F.dropout(self.wte(ids) + self.wpe(positions), self.config.dropout, self.training)
        for block in self.h:
            x = block(x, attend)
        return self.ln_f(x)

    def head(self):
        """The matrix (V, C) that turns hidden states into logits: the token embedding (tied).

        GPT-2's logits lie around -100, where numbers in bfloat16 are 0.5 apart. So in half precision the head is first
        centred over the words, which brings them near 0. A softmax does not change when a constant is added to the
        logits of all words, and neither does its gradient."""
        W = self.wte.weight
        dtype = product_dtype(W)
        return W if W.dtype == dtype else centred(W, dtype)

    def forward(self, ids):
        """ids (B, T) -> logits (B, T, V)."""
        return F.linear(self.hidden(ids), self.head())

    def grow_vocab(self, n: int) -> "GPT":
        """Add n tokens. Their rows start at the mean of the old ones: under the tied head a small random row would
        get a logit near 0, far above that of most trained tokens."""
        old = self.wte.weight.data
        rows = torch.cat([old, old.mean(dim=0, keepdim=True).expand(n, -1)])
        self.wte = nn.Embedding.from_pretrained(rows, freeze=False)
        self.config.vocab_size += n
        return self

    # ------------------------------------------------------------------ OpenAI's weights, in and out

    @classmethod
    def from_openai(cls, config: GPTConfig, weights: dict[str, torch.Tensor]) -> "GPT":
        """A GPT-2 with weights in OpenAI's layout, in float32.

        Raises ValueError, which names the key, for a tensor that is missing, unknown or of another shape."""
        if config.n_layer > len(weights):
            # or a forged config would have a million layers built
            raise ValueError(f"the config names n_layer = {config.n_layer}, but there are {len(weights)} tensors")
        with torch.device("meta"):  # shapes only, so a wrong config costs no memory
            model = cls(config)
        weights = {key.removeprefix("transformer."): p for key, p in weights.items()}
        head = weights.pop("lm_head.weight", None)
        state = {}
        for key, p in model.state_dict().items():
            if key not in weights:
                raise ValueError(f"key {key!r} is missing")
            given = weights.pop(key)
            if key.endswith(CONV1D):
                given = given.t()
            if given.shape != p.shape:
                raise ValueError(f"{key!r} has shape {tuple(given.shape)}, but the config needs {tuple(p.shape)}")
            state[key] = given.float().contiguous()
        unknown = [key for key in sorted(weights) if not key.endswith((".attn.bias", ".attn.masked_bias"))]  # masks
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r} (and {len(unknown) - 1} more)")
        if head is not None and not torch.equal(head.float(), state["wte.weight"]):
            raise ValueError("'lm_head.weight' differs from 'wte.weight', but GPT-2's head is tied")
        model.load_state_dict(state, assign=True)
        return model

    def to_openai(self, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        """The weights in OpenAI's layout, on the CPU."""
        weights = {}
        for key, p in self.state_dict().items():
            p = p.detach().to("cpu", dtype)
            weights["transformer." + key] = (p.t() if key.endswith(CONV1D) else p).contiguous()
        return weights


if __name__ == "__main__":
    import sys

    from lab.show.model import main

    sys.exit(main())
