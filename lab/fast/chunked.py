"""A loss over a large vocabulary, a chunk of tokens at a time.

Logits (S, V) of S supervised tokens over V = 50,304 words, their softmax and their gradient would take most of the
memory of an update. Here a chunk of tokens has its logits computed, its loss taken and differentiated by autograd, and
is forgotten again. What remains are the gradients of the hidden states (S, C) and of the head (V, C).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# The float32 logits of a chunk. A CPU's allocator keeps blocks of at most 32 MB at hand; larger ones cost page faults.
CHUNK_BYTES = {"cpu": 20 * 2**20, "cuda": 2**28}


@dataclass
class Term:
    """One part of a loss: Σ weights · loss(logits, *targets) over some tokens.

    tokens (n,): which of the S; weights (n,); loss: logits (m, V) and m entries of each target -> losses (m,), for any
    chunk of m tokens. It must not change when a constant is added to all logits of a token, as with any softmax."""

    tokens: torch.Tensor
    weights: torch.Tensor
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
    def forward(ctx, hidden, head, terms):
        h = hidden.to(head.dtype)
        grad_h, grad_head = torch.zeros_like(h), torch.zeros_like(head)
        losses = at_least_float32(h.new_zeros(len(h)))
        chunk = max(1, CHUNK_BYTES.get(h.device.type, CHUNK_BYTES["cpu"]) // (4 * len(head)))
        with torch.autocast(h.device.type, enabled=False):
            for term in terms:
                for i in range(0, len(term.tokens), chunk):
                    part = slice(i, i + chunk)
                    tokens = term.tokens[part]
                    weighted, grad = loss_and_gradient(F.linear(h[tokens], head), term, part)
                    losses.index_add_(0, tokens, weighted)
                    grad_h.index_add_(0, tokens, grad @ head)
                    grad_head.addmm_(grad.t(), h[tokens])
                    del grad  # before the next chunk needs the memory
        ctx.grads, ctx.dtype = (grad_h, grad_head), hidden.dtype
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx, grad, _):
        grad_h, grad_head = ctx.grads
        ctx.grads = None  # nobody else holds them, so autograd adds other gradients of the head in place
        if grad.device.type != "cpu" or grad != 1:  # comparing on a GPU would synchronise
            grad_h, grad_head = grad_h * grad, grad_head * grad
        return grad_h.to(ctx.dtype), grad_head, None


def loss_and_gradient(logits, term: Term, part: slice):
    """The weighted losses (m,) of one chunk of a term, and their gradient in its logits (m, V)."""
    with torch.enable_grad():
        losses = term.loss(at_least_float32(logits.requires_grad_()), *(target[part] for target in term.targets))
        weighted = term.weights[part] * losses
        (grad,) = torch.autograd.grad(weighted.sum(), logits)
    return weighted.detach(), grad


def chunked_loss(hidden: torch.Tensor, head: torch.Tensor, terms: list[Term]) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the terms, and what each token adds to it.

    hidden (S, C): final hidden states; head (V, C), in the dtype of the matrix products. Returns a scalar, whose
    gradients flow to hidden states and head, and its S parts (without a gradient)."""
    return ChunkedLoss.apply(hidden, head, terms)
