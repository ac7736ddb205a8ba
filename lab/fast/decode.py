"""Batched generation with a key-value cache: greedy, sampled, or by beam search.

Prompts wait in a queue, the longest first. They are prefilled packed, then continued by one token a row and step. Where
rows have ended, prompts from the queue take their places, so that each step is made for many rows. Several processes
share the prompts.
"""

from collections.abc import Callable
from itertools import cycle

import torch
import torch.distributed as dist
import torch.nn.functional as F

from lab.fast.packing import Packing, move, padded_causal

MAX_ROWS = 256  # in the cache
PREFILL_TOKENS = {"cpu": 2**10, "cuda": 2**15}  # prompt tokens that go through the model at once
ROOM = 64  # columns for new tokens at first; later their number doubles
MULTIPLE = {"cpu": 16, "cuda": 64}  # a step attends to so many columns or a multiple: kernels see few shapes
STEPS = {"cpu": 1, "cuda": 8}  # between two looks at which rows have ended, for which a GPU is waited for


def cache_bytes(device: torch.device) -> int:
    """What keys and values may take: half of a GPU's free memory, else 2 GiB."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2**31


def budget_of(model) -> int:
    """How many columns all rows of the cache may have together."""
    return cache_bytes(model.device) // KVCache.column_bytes(model)


def of_device(values: dict, device: torch.device):
    return values.get(device.type, values["cpu"])


class KVCache:
    """The keys and values of the tokens seen so far. Row b holds `length[b]` of them, from column 0 on, and writes its
    next token at column `length[b]`. Columns beyond are never attended to.

         column   0   1   2   3   4
         row 0    The dog .   ~   ~      length 3, ~ hidden
         row 1    A   b   c   d   ~      length 4
    """

    def __init__(self, model, rows: int, columns: int):
        c = model.config
        shape = (2, c.n_layer, rows, c.n_head, columns, c.n_embd // c.n_head)  # (2, L, B, H, columns, C/H)
        self.kv = torch.zeros(shape, dtype=self.dtype_of(model), device=model.device)
        self.length = torch.zeros(rows, dtype=torch.long, device=model.device)  # (B,)
        self.layers = cycle(range(c.n_layer))  # the model asks for attention a layer at a time, in their order

    @staticmethod
    def dtype_of(model) -> torch.dtype:
        kind = model.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.wte.weight.dtype

    @classmethod
    def column_bytes(cls, model) -> int:
        """What one token takes."""
        return 2 * model.config.n_layer * model.config.n_embd * cls.dtype_of(model).itemsize

    @property
    def columns(self) -> int:
        return self.kv.size(4)

    def prefill(self, model, rows: list[int], prompts: list[list[int]]) -> torch.Tensor:
        """Read a prompt into each of these rows. Returns the hidden states (b, C) of their last tokens.

        Prompts go through the model packed, as many at a time as fit into PREFILL_TOKENS, so that memory is bounded
        and prompts of similar length share it."""
        device, hidden, start = model.device, [], 0
        for end in range(1, len(prompts) + 1):
            tokens = sum(map(len, prompts[start : end + 1]))
            if end == len(prompts) or tokens > of_device(PREFILL_TOKENS, device):
                lengths = torch.tensor([len(p) for p in prompts[start:end]])
                packing = Packing.of(lengths.tolist()).to(device)
                ids = move(torch.tensor([[i for p in prompts[start:end] for i in p]]), device)  # (1, N)
                at, last = move(torch.tensor([rows[start:end], (lengths.cumsum(0) - 1).tolist()]), device)
                hidden.append(model.hidden(ids, packing.position, self.attend_to_prompts(packing, at))[0, last])
                self.length[at] = move(lengths, device)
                start = end
        return torch.cat(hidden)

    def attend_to_prompts(self, packing: Packing, rows: torch.Tensor):
        """The attention of packed prompts that also writes their keys and values into `rows` (b,)."""

        def attend(qkv, dropout):
            out, first, layer = [], 0, next(self.layers)
            for block, place in packing.padded_blocks(qkv):
                _, R, _, T, _ = block.shape
                self.kv[:, layer, rows[first : first + R], :, :T] = block[1:].to(self.kv.dtype)
                out.append(packing.unpad(padded_causal(block, dropout), place))
                first += R
            return torch.cat(out).transpose(0, 1)[None]

        return attend

    def step(self, model, tokens: torch.Tensor, used: int) -> torch.Tensor:
        """Read the next token of each row, tokens (B,). used: the columns in use with them, or more.

        Returns the hidden states (B, C). A row that has ended may wait for its mates at the end of its columns."""
        self.used, self.rows = used, torch.arange(len(self.length), device=self.length.device)
        self.at = self.length.clamp(max=min(self.columns, model.config.n_positions) - 1)
        hidden = torch.arange(used, device=self.length.device) > self.at[:, None]
        self.mask = torch.zeros(hidden.shape, dtype=self.kv.dtype, device=hidden.device)
        self.mask = self.mask.masked_fill(hidden, -torch.inf)[:, None, None]  # (B, 1, 1, used), added to the scores
        self.length = self.length + 1
        return model.hidden(tokens[:, None], self.at[:, None], self.attend_to_cache)[:, 0]

    def attend_to_cache(self, qkv, dropout: float):
        """Write one token a row, then attend to all tokens of its row: (3, B, H, 1, C/H) -> (B, H, 1, C/H)."""
        layer = next(self.layers)
        # `layer`, `rows` and `at` stand apart from each other, so that their dimension, B, comes first
        self.kv[:, layer, self.rows, :, self.at] = qkv[1:, :, :, 0].transpose(0, 1)  # (B, 2, H, C/H)
        k, v = self.kv[:, layer, :, :, : self.used].unbind(0)
        return F.scaled_dot_product_attention(qkv[0], k, v, attn_mask=self.mask)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with `rows` (b,) alone, in their order. A row named twice becomes two."""
        if len(rows) > self.kv.size(2):
            self.kv = self.kv.index_select(2, rows)
        else:  # in the memory that is there, a layer at a time: fresh memory costs more than the copy
            for kv in self.kv.unbind(1):  # (2, B, H, columns, C/H)
                kv[:, : len(rows)] = kv.index_select(1, rows)
            self.kv = self.kv[:, :, : len(rows)]
        self.length = self.length[rows]

    def widen(self, columns: int) -> None:
        """Make room for more tokens."""
        *shape, before, channels = self.kv.shape
        kv = self.kv.new_zeros(*shape, columns, channels)
        kv[..., :before, :] = self.kv
        self.kv = kv


# ---------------------------------------------------------------------- who is decoded together


def longest_first(model, prompts, limits) -> list[int]:
    """The numbers of the prompts to which something is to come.

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
    # with cuDNN's attention each new shape costs a plan of some 25 ms
    torch.backends.cuda.enable_cudnn_sdp(False)
    was_training = model.training
    model.eval()
    try:
        found = work(longest_first(model, prompts, limits)[process::processes])
    finally:
        model.train(was_training)
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
            out |= decode_band(model, band, prompts, limits, stop_id, pick)
            queue = [i for i in queue if i not in out]
        return out

    return shared(model, prompts, limits, work)


def decode_band(model, queue, prompts, limits, stop_id, pick) -> dict[int, list[int]]:
    """The new tokens of the prompts of a queue, through one cache."""
    device, head = model.device, model.head()
    budget = budget_of(model)
    steps, multiple = of_device(STEPS, device), of_device(MULTIPLE, device)
    columns = max(len(prompts[i]) + min(limits[i], ROOM) for i in queue)
    cache = KVCache(model, max(1, min(MAX_ROWS, len(queue), budget // columns)), columns)
    rows = [None] * len(cache.length)  # the prompt in each row of the cache, None where it has ended
    out = {i: [] for i in queue}
    hidden = torch.zeros(len(rows), model.config.n_embd, dtype=model.ln_f.weight.dtype, device=device)
    token = torch.zeros(len(rows), dtype=torch.long, device=device)

    def going(i) -> bool:
        return len(out[i]) < limits[i] and out[i][-1:] != [stop_id]

    def needed(more) -> int:  # columns, after more steps
        lengths = ((i, len(out[i]) + more) for i in rows if i is not None)
        return max(len(prompts[i]) + min(n, limits[i]) for i, n in lengths)

    def used(more) -> int:
        return min(-(-needed(more) // multiple) * multiple, cache.columns)

    while queue or any(i is not None for i in rows):
        # -------- prompts from the queue take the places of rows that have ended
        ended, new = [j for j, i in enumerate(rows) if i is None], set()
        if 4 * len(ended) >= len(rows):
            for j, i in zip(ended, queue):
                rows[j] = i
                new.add(i)
            queue = queue[len(new) :]
        # -------- make room: the cache gets more columns, for fewer rows if need be; rows that have ended leave at last
        if needed(steps - 1) > columns:
            columns = min(max(2 * columns, needed(steps - 1)), model.config.n_positions)
        order = sorted((j for j, i in enumerate(rows) if i is not None), key=lambda j: rows[j] in new)
        most = max(1, budget // columns)
        if most < len(rows) or len(order) <= 0.75 * len(rows):
            queue = [rows[j] for j in order[most:]] + queue  # these go on later, from what they have
            at, rows = move(torch.tensor(order[:most]), device), [rows[j] for j in order[:most]]
            cache.keep(at)
            hidden, token = hidden[at], token[at]
        if columns > cache.columns:
            cache.widen(columns)
        # -------- the hidden state behind the next token: rows that go on read their last one, new ones their prompt
        if any(i is not None and i not in new for i in rows):
            hidden = cache.step(model, token, used(0))
        if fresh := [j for j, i in enumerate(rows) if i in new]:
            states = cache.prefill(model, fresh, [prompts[rows[j]] + out[rows[j]] for j in fresh])
            hidden = hidden.index_copy(0, move(torch.tensor(fresh), device), states)
        # -------- some tokens, until the next look
        who = [(0, 0) if i is None else (i, len(out[i])) for i in rows]
        numbers, t = move(torch.tensor(who).t().contiguous(), device)
        tokens = []
        for s in range(steps):
            if s > 0:
                hidden = cache.step(model, token, used(s))
            token = pick(F.linear(hidden.to(head.dtype), head), numbers, t + s)
            tokens.append(token)
        for j, new in enumerate(torch.stack(tokens, dim=1).tolist()):
            if rows[j] is not None:
                for id in new:
                    if going(rows[j]):
                        out[rows[j]].append(id)
                rows[j] = rows[j] if going(rows[j]) else None
    return out


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
