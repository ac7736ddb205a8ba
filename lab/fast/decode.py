"""Batched generation: greedy, sampled, or by beam search.

Prompts wait in a queue, the longest first. They are read into the rows of a cache, then continued by one token a row
and step. Where rows have ended, prompts from the queue take their places, so that each step is made for many rows.
Several processes share the prompts.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F

from lab.fast.cache import KVCache, of_device
from lab.fast.packing import move

MAX_ROWS = 512  # in the cache
ROOM = 32  # columns for new tokens, beyond those of the next round
MULTIPLE = {"cpu": 16, "cuda": 32}  # a step attends to so many columns or a multiple: kernels see few shapes
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
        return Decoding(model, queue, prompts, limits, stop_id).run(pick)

    return shared(model, prompts, limits, work)


class Decoding:
    """The prompts of a queue on their way through one cache."""

    def __init__(self, model, queue, prompts, limits, stop_id):
        self.model, self.prompts, self.limits, self.stop_id = model, prompts, limits, stop_id
        self.queue, self.out = queue, {i: [] for i in queue}
        self.cache, self.rows = KVCache(model, 0, 0), []  # the prompt in each row of the cache, None where it has ended
        self.budget, self.steps = KVCache.budget(model), of_device(STEPS, model.device)

    def run(self, pick) -> dict[int, list[int]]:
        """The new tokens of each prompt. A round ends with a look at which rows have ended."""
        head, device = self.model.head(), self.model.device
        while self.queue or any(i is not None for i in self.rows):
            new = self.arrange()
            now = [(0, 0, 0) if i is None else (i, len(self.out[i]), (self.out[i] or [0])[-1]) for i in self.rows]
            numbers, t, last = move(torch.tensor(list(zip(*now))), device)
            hidden, tokens = self.read(new, last), []
            left = max(self.limits[i] - len(self.out[i]) for i in self.rows if i is not None)
            for s in range(min(self.steps, left)):
                if s > 0:
                    hidden = self.cache.step(self.model, tokens[-1], self.used(s))
                tokens.append(pick(F.linear(hidden.to(head.dtype), head), numbers, t + s))
            self.append(torch.stack(tokens, dim=1).tolist())
        return self.out

    def going(self, i) -> bool:
        return len(self.out[i]) < self.limits[i] and self.out[i][-1:] != [self.stop_id]

    def columns_of(self, rows, more: int) -> int:
        """The columns in use after so many more tokens, rounded up."""
        multiple = of_device(MULTIPLE, self.model.device)
        longest = max(len(self.prompts[i]) + min(len(self.out[i]) + more, self.limits[i]) for i in rows)
        return min(-(-longest // multiple) * multiple, self.model.config.n_positions)

    def used(self, more: int) -> int:
        return self.columns_of([i for i in self.rows if i is not None], more)

    def fitting(self, candidates) -> tuple[list[int], int]:
        """As many of these prompts as the cache has room for, and the columns that they get."""
        rows, columns = [], 0
        for i in candidates[:MAX_ROWS]:
            wider = max(columns, self.columns_of([i], self.steps + ROOM))
            if rows and (len(rows) + 1) * wider > self.budget:
                break
            rows.append(i)
            columns = wider
        return rows, columns

    def arrange(self) -> set[int]:
        """Choose the rows and columns of the cache for the next round. Returns the prompts that are new in it.

        Nothing changes before a quarter of the rows has ended or a row needs more columns. Then the cache gets as many
        rows as it has room for, in as few columns as they need: more rows as the prompts get shorter, fewer as a row
        gets longer. Rows that have no room, those with the fewest new tokens, return to the queue."""
        live, now = [i for i in self.rows if i is not None], self.cache.columns
        if 4 * len(live) > 3 * len(self.rows) and self.used(self.steps - 1) <= now:
            return set()
        live.sort(key=lambda i: len(self.out[i]), reverse=True)
        chosen, columns = self.fitting(live + self.queue)
        if len(chosen) * now <= self.budget and self.columns_of(chosen, self.steps) <= now:
            columns = now
        kept, new = chosen[: len(live)], chosen[len(live) :]
        self.queue = live[len(kept) :] + self.queue[len(new) :]
        if columns == now and 0.75 * len(self.rows) < len(chosen) <= len(self.rows) and kept == live:
            fresh = iter(new)  # they take the places of rows that have ended
            self.rows = [next(fresh, None) if i is None else i for i in self.rows]
        else:
            at = torch.tensor([self.rows.index(i) for i in kept], dtype=torch.long)
            self.cache.keep(move(at, self.model.device), len(new), columns)
            self.rows = chosen
        return set(new)

    def read(self, new: set[int], last: torch.Tensor) -> torch.Tensor:
        """Rows that go on read their last token, new ones their prompt: what the next token follows from."""
        fresh = [j for j, i in enumerate(self.rows) if i in new]
        if len(fresh) < len(self.rows):
            hidden = self.cache.step(self.model, last, self.used(0))
        if fresh:
            prompts = [self.prompts[self.rows[j]] + self.out[self.rows[j]] for j in fresh]
            states = self.cache.prefill(self.model, fresh, prompts)
            if len(fresh) == len(self.rows):
                return states
            hidden = hidden.index_copy(0, move(torch.tensor(fresh), self.model.device), states)
        return hidden

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
            n = max(1, min(MAX_ROWS, KVCache.budget(model) // (len(prompts[queue[0]]) + limits[queue[0]])) // beams)
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
