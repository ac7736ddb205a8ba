"""A loss over a large vocabulary, a chunk of tokens at a time.

Logits (S, V) of S supervised tokens over V = 50,304 words, their softmax and their gradient would take most of the
memory of an update. Here a chunk of tokens has its logits computed, its loss taken and differentiated by autograd, and
is then discarded. What remains are the gradients of the hidden states (S, C) and of the head (V, C).
"""

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# The float32 logits of a chunk. A CPU's allocator keeps blocks of at most 32 MB at hand; larger ones cost page faults.
# Nor does a CPU take more than 128 tokens: with a small vocabulary their logits then stay in its cache.
# A GPU's chunk is 1,334 tokens of 50,304 words. Word-KD launches 33 operations on it, which takes less time than 0.4
# TFLOP and some twenty passes over 256 MiB: so a group of 32,768 tokens, 25 chunks, doesn't wait for the program, and
# larger chunks would only take memory: at its peak Word-KD holds eight such tensors, 2 GiB.
CHUNK_BYTES = {"cpu": 30 * 2**20, "cuda": 2**28}
CHUNK_TOKENS = {"cpu": 128}
LARGE_HEAD = 2**24  # numbers of a head: a model with fewer needs so little memory that page faults cost more


@dataclass
class Term:
    """One part of a loss: Σ weights · loss(logits, *targets) over some tokens.

    loss: logits (m, V) and m entries of each target -> losses (m,), for any chunk of m tokens. A constant added to all
    logits of a token must not change it, as with any softmax, since the head in half precision is centred. Only the
    hidden states and the head of `chunked_loss` get gradients: weights and targets must not need any."""

    tokens: torch.Tensor  # (n,): which of the S
    weights: torch.Tensor  # (n,)
    loss: Callable
    targets: tuple  # tensors (n, ...), or `Logits`


class Logits:
    """The logits (n, V) of hidden states (n, C), computed for those that are asked for."""

    def __init__(self, hidden: torch.Tensor, head: torch.Tensor):
        self.hidden, self.head = hidden.to(head.dtype), head

    def __getitem__(self, tokens) -> torch.Tensor:
        return at_least_float32(F.linear(self.hidden[tokens], self.head))


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """A softmax over 50,000 words in half precision would lose the tail."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class ChunkedLoss(torch.autograd.Function):
    """The sum of the terms, with the gradients taken in the forward pass, while a chunk's logits are there."""

    @staticmethod
    def forward(ctx, hidden, head, terms, scale):
        if head.numel() >= LARGE_HEAD:
            release_free_memory(hidden.device)
        h = hidden.to(head.dtype)
        grad_h, grad_head = torch.zeros_like(h), torch.zeros_like(head)
        losses = at_least_float32(h.new_zeros(len(h)))
        chunk = chunk_of(h.device.type, len(head))
        with torch.autocast(h.device.type, enabled=False):
            for term in terms:
                for i in range(0, len(term.tokens), chunk):
                    part = slice(i, i + chunk)
                    tokens = term.tokens[part]
                    weighted, grad = loss_and_gradient(F.linear(h[tokens], head), term, part, scale)
                    losses.index_add_(0, tokens, weighted)
                    grad_h.index_add_(0, tokens, grad @ head)
                    grad_head.addmm_(grad.t(), h[tokens])
                    del grad  # before the next chunk needs the memory
        ctx.grads, ctx.dtype, ctx.scale = (grad_h, grad_head), hidden.dtype, scale
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx, grad, _):
        if ctx.grads is None:
            raise RuntimeError("the gradients of a chunked loss are gone after one backward pass: compute it again")
        grad_h, grad_head = ctx.grads
        ctx.grads = None  # nobody else holds them, so autograd adds other gradients of the head in place
        factor = grad / ctx.scale
        if factor.device.type != "cpu" or factor != 1:  # a GPU would have to be waited for
            grad_h, grad_head = grad_h * factor, grad_head * factor
        return grad_h.to(ctx.dtype), grad_head, None, None


def chunk_of(device: str, vocab_size: int) -> int:
    """The tokens of a chunk."""
    fit = CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"]) // (4 * vocab_size)
    return max(1, min(fit, CHUNK_TOKENS.get(device, fit)))


def release_free_memory(device: torch.device) -> None:
    """Give memory that is free back to the system. On Linux the C library keeps it, and a CPU has its peak here."""
    if device.type == "cpu" and sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim:
            trim(0)


def loss_and_gradient(logits, term: Term, part: slice, scale):
    """The weighted losses (m,) of one chunk of a term, and their gradient in its logits (m, V), times `scale`."""
    with torch.enable_grad():
        losses = term.loss(at_least_float32(logits.requires_grad_()), *(target[part] for target in term.targets))
        if losses.shape != term.weights[part].shape:
            raise ValueError(f"a loss must give a number for each of {len(logits)} tokens, not {tuple(losses.shape)}")
        weighted = term.weights[part] * losses
        (grad,) = torch.autograd.grad(weighted.sum() * scale, logits)
    return weighted.detach(), grad


def chunked_loss(hidden, head, terms: list[Term], scale=1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the terms, and what each token adds to it.

    hidden (S, C): final hidden states; head (V, C), in the dtype of the matrix products. Returns a scalar, whose
    gradients flow to hidden states and head, and its S parts (without a gradient). scale: the loss scale by which the
    scalar will be multiplied before `backward`. The gradients are made here already, and in float16 those of most
    words would be lost without it. Raises ValueError for weights or targets that need a gradient."""
    for term in terms:
        logits = [x for target in term.targets if isinstance(target, Logits) for x in (target.hidden, target.head)]
        if any(x.requires_grad for x in (term.weights, *term.targets, *logits) if torch.is_tensor(x)):
            raise ValueError("weights and targets of a chunked loss get no gradient: detach them")
    return ChunkedLoss.apply(hidden, head, terms, torch.as_tensor(scale, device=hidden.device))
