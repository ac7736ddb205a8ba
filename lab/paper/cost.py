"""What the paper's experiments should cost on a GPU: a prediction from counted operations and measured efficiency.

    python -m lab.paper.cost                                   an H100 by its data sheet
    python -m lab.paper.cost --peak 312 --bandwidth 1.6        another card: TFLOP/s in bfloat16, TB/s of its memory

An epoch over n examples with rows of t tokens, of which the answer has a (QA and LM row together: N = 2t + 1 tokens, S
= t + a + 2 supervised; L layers, C channels, V words):

    FLOP  = n · 6 · (12 L C² · N + V C · S)        forward 2, backward 4 a parameter and token; the head at S alone
    KD    + n · 2 · V C · S       the teacher's head, in every epoch
          + n · 2 · 12 L C² · N   its hidden states, once; in every epoch for those that --teacher-cache has no room for
    bytes = n · (480 L C · N + 50 V · S)           what operations read and write; with a teacher 134 V · S
          + updates · (18 · 12 L C² + 60 V C + 40 · all parameters)
    replay counts as γ n further examples of the earlier tasks' size, the pseudo-data and answers as below
    time  = max(launches · time of a launch, FLOP / (efficiency · peak), bytes / bandwidth)

An update is a group, or several where it has more tokens than one. Decoding takes as many steps as all new tokens with
all rows of the cache busy, and those of the longest row at the end; a step's time is the largest of the same three,
with all weights and its rows' keys and values for bytes. A checkpoint is 12 bytes a parameter on the disk, at most one
a minute. The efficiency is what `lab/check/bench.py` measured in bfloat16 on a CPU (as a share of a matrix product's
speed), for all methods alike. Launches are counted by `lab/check/launches.py`, without casts. Guesses are: the times of
a launch and of the disk, 32 GiB for a cache, the rows of four classification sets, the launches of tasks that were not
counted, and that eight runs side by side never wait for each other's teachers.
"""

import heapq
import json
import math
import sys
from typing import NamedTuple

from lab.errors import Parser, command
from lab.fast.decode import MAX_ROWS
from lab.fast.packing import GROUP_TOKENS
from lab.paper.experiments import keys_of
from lab.paper.runs import METHODS, NOT_LIFELONG, ROOT, RunKey, arguments
from lab.run.options import Options
from lab.run.pretrained import SIZES
from lab.tasks import TASKS
from train import batch_size

BENCH = ROOT / "lab" / "results" / "bench"
SHAPE, EPOCHS, GAMMA = SIZES["gpt2"], 9, 0.2
V = 50304  # words
CACHE = 2**35  # bytes of a teacher's hidden states, and of keys and values: half of an 80 GB card's free memory
C = SHAPE.n_embd  # channels
BLOCKS = 12 * SHAPE.n_layer * C**2  # parameters of all blocks
COLUMN = 4 * SHAPE.n_layer * C  # bytes of the keys and values of a token
BLOCK = 4  # samples whose states a teacher computes together: kd.BLOCK
STEP, FORWARD = 144, 200  # launches of a decoding step; of a pass without gradients (a teacher's block, a prefill)
TABLE_1 = {name: task.sizes for name, task in TASKS.items() if task.sizes}  # training and test examples


def parameters() -> int:
    return BLOCKS + (V + SHAPE.n_positions) * C


class Rows(NamedTuple):
    """Mean tokens of a training row and of its answer, and the longest answer, in GPT-2's tokens; launches of an update
    of Word-KD with replay, optimizer included (`python -m lab.check.bench launches`)."""

    row: float
    answer: float
    longest: int
    launches: int


# Counted: woz, e2e and rnnlg on the public files, the others on parts of them; launches of woz, sql, cnn and ag.
TOKENS = {
    "woz": Rows(23.1, 4.5, 17, 1256),
    "sql": Rows(112.6, 15.5, 50, 1154),
    "cnn": Rows(817.2, 62.6, 139, 1309),
    "e2e": Rows(70.4, 26.8, 86, 1154),
    "rnnlg.rest": Rows(34.9, 12.7, 47, 1154),
    "rnnlg.hotel": Rows(33.6, 12.2, 41, 1154),
    "rnnlg.tv": Rows(69.4, 27.6, 79, 1154),
    "rnnlg.laptop": Rows(70.9, 27.4, 81, 1154),
    "ag": Rows(65.2, 1.5, 3, 1803),
}
TOKENS |= dict.fromkeys(("yelp", "amazon", "dbpedia", "yahoo"), Rows(150.0, 2.0, 4, 1803))  # guessed


class Card(NamedTuple):
    """A GPU: bfloat16 FLOP/s, bytes/s of its memory, seconds of a launch, bytes/s of the disk, how many share a run."""

    peak: float
    bandwidth: float
    launch: float
    disk: float
    ranks: int = 1


def tokens_of(rows: Rows, lm=True) -> tuple[float, float]:
    """Tokens of an example's rows, and how many of them are supervised."""
    return rows.row + (rows.row + 1 if lm else 0), rows.answer + 1 + (rows.row + 1 if lm else 0)


def epoch_flops(n: float, rows: Rows, lm=True, kd=False) -> float:
    """Operations of one epoch over n examples, without a teacher's hidden states."""
    tokens, supervised = tokens_of(rows, lm)
    return n * (6 * (BLOCKS * tokens + V * C * supervised) + (2 * V * C * supervised if kd else 0))


def epoch_bytes(n: float, rows: Rows, lm=True, kd=False) -> float:
    """What the operations on the tokens of an epoch read and write."""
    tokens, supervised = tokens_of(rows, lm)
    return n * (480 * SHAPE.n_layer * C * tokens + (134 if kd else 50) * V * supervised)


def update_bytes() -> float:
    """What an update reads and writes of weights, gradients and moments: blocks, head, clipping and optimizer."""
    return 18 * BLOCKS + 60 * V * C + 40 * parameters()


def efficiency(rows: Rows) -> float:
    """The measured share of a matrix product's speed: of short rows, or of rows of 1,024 tokens, whose attention is not
    in the count."""
    part, name = ("long", "Word-KD, 1024 tokens") if rows.row > 512 else ("step", "Word-KD, WOZ, no cache")
    bench = json.loads((BENCH / f"{part}.json").read_text(encoding="utf-8"))
    (one,) = (r["ours"] for r in bench["results"] if (r["name"], r["dtype"]) == (name, "bfloat16"))
    return one["flops"] / bench["peak"]["bfloat16"]


def passes(card: Card, n, rows: Rows, epochs: int) -> float:
    """How many times a teacher's hidden states are computed in all epochs.

    A rank saves those of the rows that it has seen, each epoch another 1 / ranks of them, until its cache is full."""
    room = CACHE / (n * (rows.row + rows.answer + 2) * C * 2)  # two bytes a number
    return sum(1 - min(room, 1 - (1 - 1 / card.ranks) ** epoch) for epoch in range(epochs))


class Charged(NamedTuple):
    """Seconds of all updates of `train.learn`, if only launches, only FLOP, or only bytes took time; and how many
    updates there are."""

    launches: float
    arithmetic: float
    memory: float
    updates: float


def charged(card: Card, n, rows, epochs, earlier=(), lm=True, kd=False) -> Charged:
    """The updates of n examples of a task, and γ n of earlier ones."""
    replay = GAMMA * n if earlier else 0
    parts = [(n, rows, lm, kd), *((replay / len(earlier), TOKENS[task]) for task in earlier)]
    flops = epochs * sum(epoch_flops(*part) for part in parts)
    updates = epochs * (n + replay) / batch_size(int(n + replay))
    tokens = epochs * sum(part[0] * tokens_of(*part[1:3])[0] for part in parts) / (card.ranks * updates)
    launches = updates * math.ceil(tokens / GROUP_TOKENS["cuda"]) * rows.launches
    size = epochs * sum(epoch_bytes(*part) for part in parts) / card.ranks + updates * update_bytes()
    if kd:
        times = passes(card, n, rows, epochs)
        flops += times * n * 2 * BLOCKS * tokens_of(rows)[0]
        launches += times * n / card.ranks / BLOCK * FORWARD
    arithmetic = flops / (card.ranks * efficiency(rows) * card.peak)
    return Charged(launches * card.launch, arithmetic, size / card.bandwidth, updates)


def learning(card: Card, *what, **keywords) -> float:
    """Seconds of all updates: the longest of the three."""
    return max(charged(card, *what, **keywords)[:3])


def checkpoints(card: Card, seconds: float, epochs: int, teacher: bool) -> float:
    """Seconds of writing a phase's checkpoints and its model: after an epoch if the last one is old enough, and at the
    end of a teacher or a stage."""
    spacing = max(1, math.ceil(Options().checkpoint_every / (seconds / epochs)))  # epochs
    moments = -(-epochs // spacing) if teacher else epochs // spacing
    return parameters() * (12 * moments + (4 if teacher else 8)) / card.disk


def phase(card: Card, n, rows, epochs, *more, teacher=False, **keywords) -> float:
    """Seconds of a student's or a teacher's epochs, checkpoints included."""
    seconds = learning(card, n, rows, epochs, *more, **keywords)
    return seconds + checkpoints(card, seconds, epochs, teacher)


def decoding_steps(n, new, longest, rows) -> float:
    """How many steps n prompts take with so many rows in the cache; `new` tokens each on average, at most `longest`."""
    return n * new / rows + longest


def decoding(card: Card, n, prompt, new, longest) -> float:
    """Seconds of `lab.fast.decode`: n prompts, which ranks share; `new` tokens each on average, at most `longest`."""
    rows, n = min(MAX_ROWS, CACHE // COLUMN // (prompt + longest)), n / card.ranks
    speed = efficiency(TOKENS["woz"]) * card.peak
    size = 2 * parameters() + rows * (prompt + longest) * COLUMN
    step = max(STEP * card.launch, size / card.bandwidth, rows * 2 * (BLOCKS + V * C) / speed)
    refills = math.ceil(n / (rows / 4))  # once a quarter of the rows have ended
    prefill = max(refills * FORWARD * card.launch, n * 2 * BLOCKS * prompt / speed)
    return decoding_steps(n, new, longest, rows) * step + prefill


def prompts_of(rows: Rows) -> tuple[float, float, int]:
    """Tokens of a prompt, of its answer, and of the longest one."""
    return rows.row - rows.answer, rows.answer + 1, rows.longest


def run_seconds(key: RunKey, card: Card) -> tuple[float, float]:
    """Seconds of a run without its teachers, and of the teachers that it needs. `single` is teachers alone."""
    tasks = key.order.split(",")
    options = METHODS[key.label][0] if key.label in METHODS else NOT_LIFELONG[key.label]
    scoring = {t: decoding(card, TABLE_1[t][1], *prompts_of(TOKENS[t])) for t in tasks}
    answering = {t: decoding(card, TABLE_1[t][0], *prompts_of(TOKENS[t])) for t in tasks}
    lm = "qa-only" not in options and "finetune" not in options
    teachers = sum(phase(card, TABLE_1[t][0], TOKENS[t], EPOCHS, lm=lm, teacher=True) + scoring[t] for t in tasks)
    if "single" in options:
        return 0.0, teachers
    if "multitask" in options:
        epochs = EPOCHS * 3 if "long" in options else EPOCHS
        own = sum(phase(card, TABLE_1[t][0], TOKENS[t], epochs, lm=lm) + scoring[t] for t in tasks)
        return own + (sum(answering.values()) if "seq" in options else 0), teachers if "seq" in options else 0.0
    times = EPOCHS if "--eval-every-epoch" in arguments(key, []) else 1
    own = sum(scoring.values())  # before the first stage
    for m, task in enumerate(tasks):
        n, earlier = TABLE_1[task][0], tasks[:m] if "finetune" not in options else []
        own += phase(card, n, TOKENS[task], EPOCHS, earlier, lm, kd="word" in options or "soft" in options)
        own += sum(decoding(card, GAMMA * n / m, 1, TOKENS[old].row, 2 * TOKENS[old].row) for old in earlier)
        own += times * sum(scoring.values()) + (answering[task] if "seq" in options else 0)
    return own, teachers if "--kd" in options and "none" not in options else 0.0


def experiment_seconds(what: str, card: Card) -> list[float]:
    """Seconds of each run of a table, in the order of its commands. The first that needs teachers trains them."""
    seconds, made = [], set()
    for key in keys_of(what, [0]):
        own, teachers = run_seconds(key, card)
        which = frozenset(key.order.split(",")), key.label == "Single QA"  # its teachers learn no LM rows
        seconds.append(own + (teachers if which not in made else 0))
        if teachers:
            made.add(which)
    return seconds


def side_by_side(seconds: list[float], n: int) -> float:
    """When the last of these runs ends, if each of n GPUs takes the next run as soon as it is free."""
    busy = [0.0] * n
    for one in seconds:
        heapq.heapreplace(busy, busy[0] + one)
    return max(busy)


@command()
def main(argv=None) -> None:
    """The command line."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s in bfloat16 (default %(default)s, an H100)")
    parser.add_argument("--bandwidth", type=float, default=3.35, help="TB/s of the GPU's memory (default %(default)s)")
    parser.add_argument("--launch-us", type=float, default=10.0, help="time of a launch, a guess (default %(default)s)")
    parser.add_argument("--disk", type=float, default=1.0, help="GB/s that the disk writes (default %(default)s)")
    o = parser.parse_args(argv)
    if not all(0 < x < math.inf for x in (o.peak, o.bandwidth, o.launch_us, o.disk)):
        parser.error("numbers above 0 are expected")
    one = Card(o.peak * 1e12, o.bandwidth * 1e12, o.launch_us / 1e6, o.disk * 1e9)
    print("| PREDICTED, not measured | runs | one GPU, one run after another | eight GPUs, a run each |")
    print("| --- | --- | --- | --- |")
    for what in ("table2", "table3", "table4", "table5"):
        seconds = experiment_seconds(what, one)
        print(f"| {what} | {len(seconds)} | {sum(seconds) / 3600:.1f} h | {side_by_side(seconds, 8) / 3600:.1f} h |")
    print("\n| one Word-KD run, teachers included | one GPU | eight GPUs (torchrun) |\n| --- | --- | --- |")
    for what in ("table2", "table4", "table5"):
        key = next(key for key in keys_of(what, [0]) if key.label == "Word-KD")
        hours = [sum(run_seconds(key, card)) / 3600 for card in (one, one._replace(ranks=8))]
        print(f"| {key.order.replace(',', ', ')} | {hours[0]:.1f} h | {hours[1]:.1f} h |")
    print("\n| an update of Word-KD with replay, ms | launches | FLOP | bytes |\n| --- | --- | --- | --- |")
    for task in ("woz", "sql", "cnn", "ag"):
        *seconds, updates = charged(one, TABLE_1[task][0], TOKENS[task], EPOCHS, (task,), kd=True)
        print(f"| {task} | {' | '.join(f'{1000 * x / updates:.1f}' for x in seconds)} |")


if __name__ == "__main__":
    sys.exit(main())
