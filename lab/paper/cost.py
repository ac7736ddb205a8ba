"""What the paper's experiments should cost on a GPU: a prediction from counted operations and measured efficiency.

    python -m lab.paper.cost                                 an H100 by its data sheet
    python -m lab.paper.cost --peak 312 --bandwidth 1.6      another card: TFLOP/s in bfloat16, TB/s

An epoch over n examples with rows of t tokens, of which the answer has a (QA and LM row together: N = 2t + 1 tokens, S
= t + a + 2 supervised; L layers, C channels, V words):

    FLOP  = n · 6 · (12 L C² · N + V C · S)        forward 2, backward 4 a parameter and token; the head at S alone
    KD    + n · 2 · V C · S       the teacher's head, in every epoch
          + n · 2 · 12 L C² · N   its hidden states, once; in every epoch for those that --teacher-cache has no room for
    replay counts as γ n further examples of the earlier tasks' size, the pseudo-data and answers as below
    time  = max(FLOP / (efficiency · peak), updates · launches of an update · time of a launch)
          + checkpoints · 12 bytes a parameter / speed of the disk        one a minute, and one at the end

    steps = new tokens / rows that the cache holds + tokens of the longest row: all rows are busy until the last ones
    time  = steps · max(launches of a step · time of a launch, (weights + keys and values) / bandwidth)
          + FLOP of the prompts / (efficiency · peak)

The launches of an update, of one group, and of a step are counted (`lab/results/bench/launches.json`). The efficiency
is what `lab/check/bench.py` measured in bfloat16 on a CPU (as a share of a matrix product's speed), for all methods
alike. Guesses are: 10 µs for a launch, 16 GiB for the cache, 1 GB/s for the disk, the rows of four classification sets,
and that eight runs side by side never wait for each other's teachers.
"""

import argparse
import heapq
import json
import math
import sys
from typing import NamedTuple

from lab.errors import replace_unprintable
from lab.fast.decode import MAX_ROWS
from lab.paper.experiments import keys_of
from lab.paper.runs import METHODS, NOT_LIFELONG, ROOT, RunKey, arguments
from lab.run.pretrained import SIZES
from lab.tasks import TASKS
from train import batch_size

BENCH = ROOT / "lab" / "results" / "bench"
SHAPE, EPOCHS, GAMMA = SIZES["gpt2"], 9, 0.2
V = 50304  # words
TEACHER_CACHE = 2**31  # bytes of a teacher's hidden states
CACHE_BYTES = 2**34  # of keys and values
C = SHAPE.n_embd  # channels
BLOCKS = 12 * SHAPE.n_layer * C**2  # parameters of all blocks
PARAMETERS = BLOCKS + (V + SHAPE.n_positions) * C
COLUMN_BYTES = 4 * SHAPE.n_layer * C  # of a token's keys and values, two bytes a number
CHECKPOINT_BYTES = 12 * PARAMETERS  # weights and two moments
TABLE_1 = {name: task.sizes for name, task in TASKS.items() if task.sizes}  # training and test examples


class Rows(NamedTuple):
    """Mean tokens of a training row and of its answer, and the longest answer, in GPT-2's tokens."""

    row: float
    answer: float
    longest: int


TOKENS = {  # counted: woz, e2e and rnnlg on the public files, the others on parts of them
    "woz": Rows(23.1, 4.5, 17),
    "sql": Rows(112.6, 15.5, 50),
    "cnn": Rows(817.2, 62.6, 139),
    "e2e": Rows(70.4, 26.8, 86),
    "rnnlg.rest": Rows(34.9, 12.7, 47),
    "rnnlg.hotel": Rows(33.6, 12.2, 41),
    "rnnlg.tv": Rows(69.4, 27.6, 79),
    "rnnlg.laptop": Rows(70.9, 27.4, 81),
    "ag": Rows(65.2, 1.5, 3),
}
CLASSIFICATION = ("yelp", "amazon", "dbpedia", "yahoo")
TOKENS |= dict.fromkeys(CLASSIFICATION, Rows(150.0, 2.0, 4))  # guessed


class Card(NamedTuple):
    """A GPU and its host: bfloat16 FLOP/s, bytes/s of its memory, seconds of a launch, bytes/s of the disk, how many
    GPUs share a run."""

    peak: float
    bandwidth: float
    launch: float
    disk: float
    ranks: int = 1


def epoch_flops(n: float, rows: Rows, lm=True, kd=False) -> float:
    """Operations of one epoch over n examples, without a teacher's hidden states."""
    tokens, supervised = rows.row + (rows.row + 1 if lm else 0), rows.answer + 1 + (rows.row + 1 if lm else 0)
    return n * (6 * (BLOCKS * tokens + V * C * supervised) + (2 * V * C * supervised if kd else 0))


def efficiency(rows: Rows) -> float:
    """The measured share of a matrix product's speed: of short rows, or of rows of 1,024 tokens, whose attention is not
    in the count."""
    part, name = ("long", "Word-KD, 1024 tokens") if rows.row > 512 else ("step", "Word-KD, WOZ, no cache")
    bench = json.loads((BENCH / f"{part}.json").read_text(encoding="utf-8"))
    (one,) = (r["ours"] for r in bench["results"] if (r["name"], r["dtype"]) == (name, "bfloat16"))
    return one["flops"] / bench["peak"]["bfloat16"]


def launches_of(what: str) -> float:
    """Counted launches of "decoding step", or of an update of a task; of woz's where its own are not counted."""
    counts = json.loads((BENCH / "launches.json").read_text(encoding="utf-8"))["now"]
    if what in counts:
        return counts[what]
    updates = {
        name.split()[2].strip(","): n["forward"] + n["backward"] for name, n in counts.items() if "update" in name
    }
    return updates.get("ag" if what in CLASSIFICATION else what, updates["woz"])


def passes(card: Card, n, rows: Rows, epochs: int) -> float:
    """How many times a teacher's hidden states are computed in all epochs.

    A rank saves those of the rows that it has seen, each epoch another 1 / ranks of them, until its cache is full."""
    room = TEACHER_CACHE / (n * (rows.row + rows.answer + 2) * C * 2)  # two bytes a number
    return sum(1 - min(room, 1 - (1 - 1 / card.ranks) ** epoch) for epoch in range(epochs))


def learning(card: Card, n, task: str, epochs, earlier=(), lm=True, kd=False) -> float:
    """Seconds of `train.learn`: n examples of a task, and γ n of earlier ones."""
    rows = TOKENS[task]
    replay = GAMMA * n if earlier else 0
    flops = epochs * epoch_flops(n, rows, lm, kd)
    flops += sum(epochs * epoch_flops(replay / len(earlier), TOKENS[task]) for task in earlier)
    if kd:
        flops += passes(card, n, rows, epochs) * n * 2 * BLOCKS * (2 * rows.row + 1)
    updates = epochs * (n + replay) / batch_size(int(n + replay))
    seconds = max(flops / (card.ranks * efficiency(rows) * card.peak), updates * launches_of(task) * card.launch)
    return seconds + (1 + min(seconds // 60, epochs - 1)) * CHECKPOINT_BYTES / card.disk


def decoding(card: Card, n, prompt, new, longest) -> float:
    """Seconds of `lab.fast.decode`: n prompts, which ranks share; `new` tokens each on average, at most `longest`."""
    rows = min(MAX_ROWS, CACHE_BYTES // COLUMN_BYTES // (prompt + longest))
    steps = n * new / (card.ranks * rows) + longest
    read = 2 * PARAMETERS + min(rows, n / card.ranks) * (prompt + new) * COLUMN_BYTES
    prefill = n * 2 * BLOCKS * prompt / (card.ranks * efficiency(TOKENS["woz"]) * card.peak)
    return steps * max(launches_of("decoding step") * card.launch, read / card.bandwidth) + prefill


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
    teachers = sum(learning(card, TABLE_1[t][0], t, EPOCHS, lm=lm) + scoring[t] for t in tasks)
    if "single" in options:
        return 0.0, teachers
    if "multitask" in options:
        epochs = EPOCHS * 3 if "long" in options else EPOCHS
        own = sum(learning(card, TABLE_1[t][0], t, epochs, lm=lm) + scoring[t] for t in tasks)
        return own + (sum(answering.values()) if "seq" in options else 0), teachers if "seq" in options else 0.0
    times = EPOCHS if "--eval-every-epoch" in arguments(key, []) else 1
    own = sum(scoring.values())  # before the first stage
    for m, task in enumerate(tasks):
        n, earlier = TABLE_1[task][0], tasks[:m] if "finetune" not in options else []
        own += learning(card, n, task, EPOCHS, earlier, lm, kd="word" in options or "soft" in options)
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


def main(argv=None) -> int:
    """The command line. Returns the exit code."""
    replace_unprintable()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"error: {message} (--help lists the options)\n")  # one line
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s in bfloat16 (default %(default)s, an H100)")
    parser.add_argument("--bandwidth", type=float, default=3.35, help="TB/s of its memory (default %(default)s)")
    parser.add_argument("--launch-us", type=float, default=10.0, help="µs of a launch (default %(default)s, a guess)")
    parser.add_argument("--disk", type=float, default=1.0, help="GB/s of the disk (default %(default)s, a guess)")
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
