"""Batched generation: greedy, sampled, or by beam search.

Prompts wait in a queue, the longest first. They are read into the rows of a cache, then continued by one token a row
and step. Where rows have ended, prompts from the queue take their places, so that each step is made for many rows.
Several processes share the prompts.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F

from lab.fast.cache import KVCache, budget_of, of_device
from lab.fast.packing import move

MAX_ROWS = 256  # in the cache
ROOM = 64  # columns for new tokens at first; later their number doubles
MULTIPLE = {"cpu": 16, "cuda": 64}  # a step attends to so many columns or a multiple: kernels see few shapes
STEPS = {"cpu": 1, "cuda": 8}  # between two looks at which rows have ended, for which a GPU is waited for


# ---------------------------------------------------------------------- who is decoded together


def longest_first(model, prompts, limits) -> list[int]:
    """The numbers of the prompts that need tokens, the longest first.

    Raises ValueError for an empty prompt, or one that does not fit into the context with its new tokens."""
    for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if not prompt or len(prompt) + max(limit, 1) - 1 > model.config.n_positions:
            wanted = f"1 token or more, and at most {model.config.n_positions} with the new ones"
            raise ValueError(f"prompt {i} has {len(prompt)} tokens and {limit} to come: needs {wanted}")
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]) + limits[i], i), reverse=True)
    return [i for i in order if limits[i] > 0]


@torch.compiler.set_stance("force_eager")  # a step's shapes change too often for blocks compiled for training
@torch.no_grad()
def shared(model, prompts, limits, work: Callable) -> list[list[int]]:
    """work(numbers) gives {number: new tokens}. Each process decodes its share of the prompts, in evaluation mode."""
    processes = dist.get_world_size() if dist.is_initialized() else 1
    process = dist.get_rank() if dist.is_initialized() else 0
    was_training, cudnn = model.training, torch.backends.cuda.cudnn_sdp_enabled()
    model.eval()
    torch.backends.cuda.enable_cudnn_sdp(False)  # with cuDNN's attention each new shape costs a plan of some 25 ms
    try:
        found = work(longest_first(model, prompts, limits)[process::processes])
    finally:
        model.train(was_training)
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
    out = [found.get(i, []) for i in range(len(prompts))]
    return all_gather(out) if processes > 1 else out


def all_gather(rows: list[list[int]]) -> list[list[int]]:
    """Lists of token ids, each made by one process and empty on the others -> all of them, on every process."""
    longest = torch.tensor(max(map(len, rows), default=0))
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    ids = torch.full((len(rows), int(longest)), -1, dtype=torch.int32)
    for line, row in zip(ids, rows):
        line[: len(row)] = torch.tensor(row, dtype=torch.int32)
    dist.all_reduce(ids, dist.ReduceOp.MAX)
    return [[i for i in line if i >= 0] for line in ids.tolist()]


# ---------------------------------------------------------------------- greedy and sampled rows


def decode(model, prompts, limits, stop_id: int, pick: Callable) -> list[list[int]]:
    """Continue every prompt until `stop_id`, which is kept, or by its limit of new tokens.

    prompts: lists of token ids of any lengths; limits: the most new tokens of each. pick(logits (b, V), rows (b,),
    t (b,)) gives the next token (b,) of the prompts `rows`, whose t-th it is. Returns lists of new ids, one a prompt.
    Raises ValueError for an empty prompt, or one that does not fit into the context together with its new tokens."""

    def work(queue):
        out = {}
        while queue:
            columns = [len(prompts[i]) + min(limits[i], ROOM) for i in queue]
            least = columns[0] // 2 if min(MAX_ROWS, len(queue)) * columns[0] > budget_of(model) else 0
            band = [i for i, n in zip(queue, columns) if n >= least]  # where memory is short, only of similar length
            out |= Decoding(model, band, prompts, limits, stop_id).run(pick)
            queue = [i for i in queue if i not in out]
        return out

    return shared(model, prompts, limits, work)


class Decoding:
    """The prompts of a queue on their way through one cache."""

    def __init__(self, model, queue, prompts, limits, stop_id):
        self.model, self.prompts, self.limits, self.stop_id = model, prompts, limits, stop_id
        self.budget = budget_of(model)
        columns = max(len(prompts[i]) + min(limits[i], ROOM) for i in queue)
        n = max(1, min(MAX_ROWS, len(queue), self.budget // columns))
        self.cache, self.steps = KVCache(model, n, columns), of_device(STEPS, model.device)
        self.queue, self.out = queue, {i: [] for i in queue}
        self.rows = [None] * n  # the prompt in each row of the cache, None where it has ended
        self.hidden = torch.zeros(n, model.config.n_embd, dtype=model.ln_f.weight.dtype, device=model.device)
        self.token = torch.zeros(n, dtype=torch.long, device=model.device)  # the last one of each row

    def run(self, pick) -> dict[int, list[int]]:
        """The new tokens of each prompt. A round ends with a look at which rows have ended."""
        head, device = self.model.head(), self.model.device
        while self.queue or any(i is not None for i in self.rows):
            new = self.refill()
            self.make_room(new)
            self.read(new)
            now = [(0, 0) if i is None else (i, len(self.out[i])) for i in self.rows]
            numbers, t = move(torch.tensor(now).t().contiguous(), device)
            tokens = []
            for s in range(self.steps):
                if s > 0:
                    self.hidden = self.cache.step(self.model, self.token, self.used(s))
                self.token = pick(F.linear(self.hidden.to(head.dtype), head), numbers, t + s)
                tokens.append(self.token)
            self.append(torch.stack(tokens, dim=1).tolist())
        return self.out

    def going(self, i) -> bool:
        return len(self.out[i]) < self.limits[i] and self.out[i][-1:] != [self.stop_id]

    def needed(self, more: int) -> int:
        """The columns in use after more steps."""
        lengths = ((i, len(self.out[i]) + more) for i in self.rows if i is not None)
        return max(len(self.prompts[i]) + min(n, self.limits[i]) for i, n in lengths)

    def used(self, more: int) -> int:
        """The same, rounded up, so that kernels see few shapes."""
        multiple = of_device(MULTIPLE, self.model.device)
        return min(-(-self.needed(more) // multiple) * multiple, self.cache.columns)

    def refill(self) -> set[int]:
        """Prompts from the queue take the places of rows that have ended, once these are a quarter."""
        ended, new = [j for j, i in enumerate(self.rows) if i is None], set()
        if 4 * len(ended) >= len(self.rows):
            for j, i in zip(ended, self.queue):
                self.rows[j] = i
                new.add(i)
            self.queue = self.queue[len(new) :]
        return new

    def make_room(self, new: set[int]) -> None:
        """The cache gets more columns, for fewer rows if need be. Rows that have ended leave once nothing waits."""
        columns = self.cache.columns
        if (needed := self.needed(self.steps - 1)) > columns:
            columns = min(max(2 * columns, needed), self.model.config.n_positions)
        live = sorted((j for j, i in enumerate(self.rows) if i is not None), key=lambda j: self.rows[j] in new)
        most = max(1, self.budget // columns)
        if most < len(self.rows) or len(live) <= 0.75 * len(self.rows):
            self.queue = [self.rows[j] for j in live[most:]] + self.queue  # these go on later, from what they have
            at, self.rows = move(torch.tensor(live[:most]), self.model.device), [self.rows[j] for j in live[:most]]
            self.cache.keep(at)
            self.hidden, self.token = self.hidden[at], self.token[at]
        if columns > self.cache.columns:
            self.cache.widen(columns)

    def read(self, new: set[int]) -> None:
        """Rows that go on read their last token, new ones their prompt: what the next token follows from."""
        if any(i is not None and i not in new for i in self.rows):
            self.hidden = self.cache.step(self.model, self.token, self.used(0))
        if fresh := [j for j, i in enumerate(self.rows) if i in new]:
            prompts = [self.prompts[self.rows[j]] + self.out[self.rows[j]] for j in fresh]
            states = self.cache.prefill(self.model, fresh, prompts)
            self.hidden = self.hidden.index_copy(0, move(torch.tensor(fresh), self.model.device), states)

    def append(self, tokens: list[list[int]]) -> None:
        """Add the tokens of a round to each row, up to its end."""
        for j, i in enumerate(self.rows):
            if i is not None:
                for token in tokens[j]:
                    if self.going(i):
                        self.out[i].append(token)
                self.rows[j] = i if self.going(i) else None


# ---------------------------------------------------------------------- beam search


def beam_search(model, prompts, limits, stop_id: int, beams: int) -> list[list[int]]:
    """The best continuation of each prompt that a search with `beams` beams finds; one beam is greedy decoding.

    Arguments, result and errors are those of `decode`. Raises ValueError also for less than one beam, and for more than
    half the vocabulary, since the first step needs two words a beam."""
    if not 1 <= beams <= model.config.vocab_size // 2:
        raise ValueError(f"{beams} beams: needs 1 or more, and at most half of {model.config.vocab_size} words")

    def work(queue):
        out = {}
        while queue:  # as many prompts at a time as the cache has room for with all their beams
            n = max(1, min(MAX_ROWS, budget_of(model) // (len(prompts[queue[0]]) + limits[queue[0]])) // beams)
            now, queue = queue[:n], queue[n:]
            found = decode_beams(model, [prompts[i] for i in now], [limits[i] for i in now], stop_id, beams)
            out |= dict(zip(now, found))
        return out

    return shared(model, prompts, limits, work)


def decode_beams(model, prompts, limits, stop_id, beams):
    """The best answer y found to each prompt x of one chunk, by the rules of transformers with `early_stopping=True`.

        score(y) = 1/|y| Σ_t log P(y_t | x, y_<t)        |y| counts the stop token

    A step keeps the best 2K continuations of the K = `beams` beams, since up to K of them may be the stop token. Those
    of the best K that stop or reach the limit are answers. The best K that don't stop are the next beams. A prompt is
    done once it has K answers."""
    head = model.head()
    cache = KVCache(model, len(prompts), max(len(p) + limit for p, limit in zip(prompts, limits)))
    hidden = cache.prefill(model, list(range(len(prompts))), prompts)
    answers = [[] for _ in prompts]  # (score, tokens)
    todo = list(range(len(prompts)))  # the prompts still in the cache: a row each at first, then a row for each beam
    y = torch.zeros(len(todo), 0, dtype=torch.long, device=model.device)  # (rows, t)
    total = torch.zeros(len(todo), device=model.device)  # (rows,): Σ_t log P
    for t in range(1, max(limits) + 1):
        logits = F.linear(hidden.to(head.dtype), head)  # (rows, V)
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
        hidden = cache.step(model, y[:, -1], max(len(prompts[i]) for i in todo) + t)
    return [max(found)[1] for found in answers]
