"""Models, prompts and rows that are small enough to compare with a plain computation."""

import torch

from data import encode_parts, make_batch
from model import GPT, GPTConfig


def seeded(n: int) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def tiny(seed=0, vocab=12, dropout=0.0, dtype=torch.double) -> GPT:
    """A random GPT-2 in evaluation mode, with weights so large that each word is likely at times."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab, n_positions=64, n_embd=16, n_layer=2, n_head=2, dropout=dropout)).to(dtype).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.4) if p.dim() == 2 else p.add_(0.2 * torch.randn_like(p))
    return model


def prompts_of(lengths, vocab=12, seed=0) -> list[list[int]]:
    """Random token ids."""
    g = seeded(seed)
    return [torch.randint(vocab, (n,), generator=g).tolist() for n in lengths]


def samples_of(n: int, tok, seed=1, longest=12) -> list:
    """Random samples of a task."""
    g = seeded(seed)
    samples = []
    for lengths in torch.randint(1, longest + 1, (n, 3), generator=g).tolist():
        c, q, a = (torch.randint(256, (n,), generator=g).tolist() for n in lengths)
        samples.append(encode_parts(c, q, a, tok.first_slot, tok, 64, id=str(len(samples))))
    return samples


def batch_of(tok, n_current, n_replay=0, **options) -> list:
    """A batch of random samples, the current ones first."""
    n = n_current + n_replay
    return make_batch(samples_of(n, tok), range(n), n_current, **options)


def gradients(model) -> dict:
    """The gradients of all parameters, which are then forgotten."""
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def assert_close(found: dict, wanted: dict, tolerance: float) -> None:
    """Are the gradients those that are wanted, up to a share of the largest entry of each?"""
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert (found[name] - grad).abs().max() <= tolerance * grad.abs().max(), name
