"""A loss in chunks is the loss of all logits at once, with its gradients. python -m pytest tests/test_chunked.py"""

from functools import partial

import pytest
import torch
from tiny import seeded

from kd import nll, word_kd
from lab.fast import chunked as chunked_file
from lab.fast.chunked import Logits, Term, chunked_loss

S, V, C = 37, 23, 8
distance = partial(word_kd, temperature=2.0)


def random(*shape, seed=0, dtype=torch.double, requires_grad=False):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype).requires_grad_(requires_grad)


@pytest.fixture
def chunks_of(monkeypatch):
    """chunks_of(n): a chunk has n tokens of a head of V words."""
    return lambda n, V=V: monkeypatch.setattr(chunked_file, "CHUNK_BYTES", {"cpu": 4 * V * n})


def hard(tokens, seed=2):
    g = seeded(seed)
    weights = torch.rand(len(tokens), generator=g, dtype=torch.double)
    return Term(tokens, weights, nll, (torch.randint(V, (len(tokens),), generator=g),))


def soft(tokens, seed=3):
    weights = torch.rand(len(tokens), generator=seeded(seed), dtype=torch.double)
    return Term(tokens, weights, distance, (Logits(random(len(tokens), C, seed=seed), random(V, C, seed=4)),))


def entropy(logits):
    """A loss of one's own, which needs no target."""
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


def terms_of(kind):
    everywhere, some = torch.arange(S), torch.randperm(S, generator=seeded(5))
    return {
        "nll": [hard(everywhere)],
        "kd": [soft(everywhere)],
        "mixed": [hard(some[:20]), soft(some[20:])],
        "half and half": [hard(everywhere), soft(some[:30])],
        "empty": [hard(some[:0]), soft(some[:9]), soft(some[:0])],  # and tokens that no term has
        "one's own": [Term(some, torch.ones(S), entropy, ()), hard(some[:3])],
    }[kind]


def plain_loss(hidden, head, terms):
    """All logits at once, and the parts (S,) of the sum."""
    parts = torch.zeros(len(hidden), dtype=hidden.dtype)
    for term in terms:
        targets = [target[torch.arange(len(term.tokens))] for target in term.targets]
        losses = term.loss(hidden[term.tokens] @ head.t(), *targets)
        parts = parts.index_add(0, term.tokens, term.weights.to(hidden.dtype) * losses)
    return parts.sum(), parts


@pytest.mark.parametrize("kind", ["nll", "kd", "mixed", "half and half", "empty", "one's own"])
@pytest.mark.parametrize("chunk", [1, 5, 16, 1000])
def test_values_and_gradients_are_those_of_all_logits_at_once(chunks_of, chunk, kind):
    chunks_of(chunk)
    hidden, head = random(S, C, seed=0, requires_grad=True), random(V, C, seed=1, requires_grad=True)
    loss, parts = chunked_loss(hidden, head, terms_of(kind))
    wanted, wanted_parts = plain_loss(hidden, head, terms_of(kind))
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts, wanted_parts.detach(), rtol=1e-12, atol=1e-12)
    assert not parts.requires_grad
    found = torch.autograd.grad(loss, (hidden, head))
    torch.testing.assert_close(found, torch.autograd.grad(wanted, (hidden, head)), rtol=1e-12, atol=1e-12)


def test_other_uses_of_hidden_states_and_head_add_their_gradients_and_a_factor_multiplies_them():
    """The gradients are made in the forward pass. What comes after it must not be lost: here the head is the embedding,
    too, and the loss is a third of the sum."""
    ids, weights = torch.tensor([3, 1, 4, 1, 5]), torch.ones(5, dtype=torch.double)
    terms = [Term(torch.arange(5), weights, nll, (ids.flip(0),))]
    found = []
    for loss_of in (chunked_loss, plain_loss):
        W = random(V, C, requires_grad=True)
        hidden = torch.tanh(W[ids])
        (0.3 * loss_of(hidden, W, terms)[0] + hidden.pow(2).sum() + W.sum()).backward()
        found.append(W.grad)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_logits_of_a_chunk_take_at_most_32_mb_on_a_cpu_and_no_loss_sees_more():
    words, n, sizes = 50304, 400, []

    def spy(logits, targets):
        assert logits.dtype == torch.float32 and logits.shape[1] == words and len(targets) == len(logits)
        sizes.append(len(logits))
        return nll(logits, targets)

    hidden, head = random(n, 4, dtype=torch.float), random(words, 4, seed=1, dtype=torch.float)
    half = Term(torch.arange(0, n, 2), torch.ones(n // 2), spy, (torch.arange(n // 2),))
    chunked_loss(hidden, head, [half, half])
    assert sum(sizes) == n and max(sizes) * words * 4 <= 32e6
    assert max(sizes) >= 50  # fewer would waste time


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_a_loss_and_its_softmax_are_computed_in_float32(dtype):
    seen = set()

    def spy(logits, teacher):
        seen.update((logits.dtype, teacher.dtype, torch.is_autocast_enabled("cpu")))
        return distance(logits, teacher)

    hidden, head = random(S, C, dtype=torch.float, requires_grad=True), random(V, C, seed=1, dtype=dtype)
    teacher = Logits(random(S, C, seed=2, dtype=torch.float), random(V, C, seed=3, dtype=dtype))
    with torch.autocast("cpu", dtype):
        loss, parts = chunked_loss(hidden, head, [Term(torch.arange(S), torch.ones(S), spy, (teacher,))])
    loss.backward()
    assert seen == {torch.float32, False} and parts.dtype == torch.float32 == hidden.grad.dtype
    exact = Logits(teacher.hidden.float(), teacher.head.float())
    wanted, _ = plain_loss(hidden, head.float(), [Term(torch.arange(S), torch.ones(S), distance, (exact,))])
    assert loss.item() == pytest.approx(wanted.item(), rel=0.01)


@pytest.mark.parametrize("term_of", [hard, soft])
def test_a_loss_scale_keeps_what_float16_would_lose(term_of):
    """float16 can't hold 1e-8. A scale that came after the gradients are made would multiply what is 0 already. A
    penalty that is added to the loss has the same scale, as in every recipe of mixed precision."""
    term, penalty = term_of(torch.arange(S)), 1e-9
    hidden, head = (random(n, C, seed=n, dtype=torch.float, requires_grad=True) for n in (S, V))

    def gradients(cast, *scale):
        targets = term.targets
        if term_of is soft:
            targets = (Logits(term.targets[0].hidden, term.targets[0].head.to(cast)),)
        weighted = Term(term.tokens, 1e-8 * term.weights.float(), term.loss, targets)
        loss, _ = chunked_loss(hidden, head.to(cast), [weighted], *scale)
        loss = loss + penalty * head.square().sum()
        return [grad / 2.0**16 for grad in torch.autograd.grad(2.0**16 * loss, (hidden, head))]

    wanted = gradients(torch.float)
    assert torch.equal(wanted[0], gradients(torch.float, 2.0**4)[0])  # a power of two rounds nothing
    for found, exact in zip(gradients(torch.float16, 2.0**16), wanted):
        assert (found - exact).abs().max() < 0.02 * exact.abs().max()
    lost = gradients(torch.float16)[1] - 2 * penalty * head.detach()
    assert lost.abs().max() < 0.1 * wanted[1].abs().max()


def test_what_a_chunked_loss_can_not_do_it_refuses():
    """A gradient for weights or targets, or for a second backward pass, would be missing in silence."""
    hidden, head = random(S, C, requires_grad=True), random(V, C, seed=1, requires_grad=True)
    everywhere, weights = torch.arange(S), torch.ones(S, dtype=torch.double)
    learned = torch.zeros(S, V, dtype=torch.double, requires_grad=True)
    for term in (
        Term(everywhere, weights.clone().requires_grad_(), entropy, ()),
        Term(everywhere, weights, distance, (learned,)),
        Term(everywhere, weights, lambda logits, more: entropy(logits) * more, (learned[:, 0],)),
        Term(everywhere, weights, distance, (Logits(hidden, random(V, C, seed=2)),)),
    ):
        with pytest.raises(ValueError, match="weights and targets of a chunked loss get no gradient: detach them"):
            chunked_loss(hidden, head, [hard(everywhere), term])
    mean = lambda logits: entropy(logits).mean()  # noqa: E731  it would broadcast, and depend on the chunk's size
    with pytest.raises(ValueError, match="a loss must give a number for each of 37 tokens"):
        chunked_loss(hidden, head, [Term(everywhere, weights, mean, ())])
    loss, _ = chunked_loss(hidden, head, [hard(everywhere)])
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="gone after one backward pass"):
        loss.backward()


def test_a_chunk_has_a_bounded_number_of_tokens_and_of_bytes():
    assert [chunked_file.chunk_of("cpu", V) for V in (1000, 50304, 100_000, 10**9)] == [128, 128, 78, 1]
    assert chunked_file.chunk_of("cuda", 50304) == chunked_file.CHUNK_BYTES["cuda"] // (4 * 50304) == 1334
    assert chunked_file.chunk_of("mps", 50304) == 156
