"""How the tiny vocabulary and the tiny pretrained GPT-2 in lab/assets/ were made, and the comparison of all methods.

python -m lab.nano --vocabulary     lab/assets/nano.tiktoken: 1,000 byte-pair tokens and EOS
python -m lab.nano --pretrain       lab/assets/nano/: a GPT-2 of 1M parameters
python -m lab.nano --compare        runs what lab/results/nano/ lacks, prints the table, draws lab/assets/comparison.png
"""

import argparse
import base64
import json
import math
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import mean, stdev

import torch
from tqdm import tqdm

import kd
from data import PATTERN, Tokenizer
from lab import rundir
from lab.experiments import METHODS, name_for, run_all
from lab.paper import draw_task, spread
from lab.rundir import RunError
from lab.toy import GRAMMARS, toy_rows
from model import GPT, GPTConfig

ASSETS = Path(__file__).parent / "assets"


# ---------------------------------------------------------------------- the vocabulary


def train_vocabulary(path: Path, size: int = 1000) -> None:
    """Byte-pair merges learned on text of the toy tasks: most of their words become one token, any text still encodes.

    The file has tiktoken's format: a line `<base64 of the token's bytes> <id>` a token, in order of the merges."""
    from tiktoken._educational import bpe_train

    rows = [row for task in GRAMMARS for row in toy_rows(task, "pretraining", 200)]
    text = "\n".join(f" {row[part]}" for row in rows for part in ("context", "question", "answer"))
    ranks = bpe_train(text, size, PATTERN, visualise=None)
    rundir.write_text(path, "".join(f"{base64.b64encode(token).decode()} {id}\n" for token, id in ranks.items()))


# ---------------------------------------------------------------------- pretraining

SHAPE = GPTConfig(vocab_size=1001, n_positions=256, n_embd=128, n_layer=4, n_head=4)
STEPS, TOKENS, LENGTHS, LR, WARMUP = 4500, 4096, (64, 64, 128, 256), 2e-3, 100


def grammar_text(r: Random, texts: list[list[int]], eos_id: int, n: int) -> list[int]:
    """n tokens of contexts of the toy tasks, one after the other. No questions and no answers."""
    ids = []
    while len(ids) < n:
        ids += [*r.choice(texts), eos_id]
    return ids[:n]


def repeated_spans(r: Random, words: list[int], n: int) -> list[int]:
    """n tokens: random words, then spans of what stands there already; to predict them is to copy from the context."""
    ids = r.choices(words, k=r.randint(4, min(32, n // 4)))
    while len(ids) < n:
        start = r.randrange(len(ids) - 3) if len(ids) > 4 and r.random() < 0.5 else 0
        ids += ids[start : start + r.randint(3, 24)]
    return ids[:n]


def recent(losses: list[list[float]]) -> dict[str, float]:
    """Mean loss of the last 100 steps by kind of text, in nats a token."""
    return {kind: round(mean(last), 4) for kind, last in zip(("grammar text", "repeated spans"), zip(*losses[-100:]))}


def pretrain(folder: Path, steps: int = STEPS) -> dict:
    """A GPT-2 from random weights on half grammar text, half repeated spans; float16 weights and the recipe go into
    `folder`. The same on every run with the same torch and threads."""
    tok, began = Tokenizer.nano(), time.time()
    rows = [row for task in GRAMMARS for row in toy_rows(task, "pretraining", 3000)]
    texts = [tok.encode(row["context"]) for row in rows]
    toy_words = sorted({i for row in rows for part in ("context", "answer") for i in tok.encode(row[part])})
    r, _ = Random(0), torch.manual_seed(0)
    model = GPT(replace(SHAPE, dropout=0.0))
    with torch.no_grad():  # GPT-2's initial scale is meant for 768 and more channels
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(4)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    losses = []
    bar = tqdm(range(steps), "pretraining")
    for step in bar:
        T = r.choice(LENGTHS)
        half = TOKENS // T // 2
        batch = [grammar_text(r, texts, tok.eos_id, T + 1) for _ in range(half)]
        batch += [repeated_spans(r, r.choice((toy_words, range(tok.n_base))), T + 1) for _ in range(half)]
        ids = torch.tensor(batch)
        for group in optimizer.param_groups:
            group["lr"] = LR * min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * step / steps)))
        loss = kd.nll(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).view(2, -1).mean(dim=1)
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.tolist())
        bar.set_postfix_str(", ".join(f"{kind} {value:.3f}" for kind, value in recent(losses).items()))
    recipe = {"steps": steps, "tokens_a_step": TOKENS, "row_lengths": LENGTHS, "lr": LR, "warmup_steps": WARMUP}
    recipe |= {"final_loss_nats": recent(losses)}
    recipe |= {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    recipe |= {"seconds": round(time.time() - began)}
    trained = GPT(SHAPE)
    trained.load_state_dict(model.state_dict())
    extra = {"tokenizer": tok.name, "eos_token_id": tok.eos_id}
    rundir.write_folder(folder, lambda f: trained.save_pretrained(f, torch.float16, **extra))
    rundir.write_json(folder / "recipe.json", recipe)
    return recipe


# ---------------------------------------------------------------------- the comparison

ORDERS = ("toy.woz,toy.sql,toy.cnn", "toy.cnn,toy.woz,toy.sql")
FURTHER = {  # as released, LAMOL's replay loss is `joint` and Word-KD's is `added`: these are not run twice
    "Word-KD without replay": "--kd word --gamma 0",
    "LAMOL, added": "--kd none --replay-loss added",
    "LAMOL, alternate": "--kd none --updates alternate",
    "Word-KD, joint": "--kd word --replay-loss joint",
    "Word-KD, alternate": "--kd word --updates alternate",
    "single": "--method single",
    "multitask": "--method multitask",
}
SEEDS, FURTHER_SEEDS = range(5), range(3)
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "lab" / "results" / "nano"


def comparison() -> dict[str, tuple[str, int, list[str]]]:
    """The runs: name -> (label, which order, options); five methods in both orders, the rest in the first."""
    runs = [
        (label, i, f"--order {order} --seed {seed} {options}")
        for i, order in enumerate(ORDERS)
        for label, (options, *_) in METHODS.items()
        for seed in SEEDS
    ]
    runs += [(label, 0, f"--order {ORDERS[0]} --seed {s} {o}") for label, o in FURTHER.items() for s in FURTHER_SEEDS]
    return {name_for(options.split()): (label, i, options.split()) for label, i, options in runs}


def compare(runs_dir: Path, jobs: int) -> None:
    """Run what has no result yet, each run a command of its own. Raises RunError when a run failed."""
    runs = {name: [*options, "--runs-dir", str(runs_dir)] for name, (_, _, options) in comparison().items()}
    run_all(runs, runs_dir, RESULTS, jobs)


def collected() -> dict[tuple[str, int], list[dict]]:
    """(label, order) -> the summaries of its runs that are there, each with the lines of its scores.jsonl."""
    found = {}
    for name, (label, order, _) in comparison().items():
        if (RESULTS / name / "summary.json").exists():
            summary = json.loads((RESULTS / name / "summary.json").read_text(encoding="utf-8"))
            found.setdefault((label, order), []).append(
                summary | {"lines": rundir.read_jsonl(RESULTS / name / "scores.jsonl")}
            )
    return found


def comparison_table(found) -> str:
    """A line a label: seeds, then for each order the average after the last stage and the forgetting."""
    lines = [
        "| method | seeds | woz, sql, cnn: average | forgetting | cnn, woz, sql: average | forgetting |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for label in (*METHODS, *FURTHER):
        both = [found.get((label, order), []) for order in range(len(ORDERS))]
        cells = [spread([s[key] for s in runs]) for runs in both for key in ("average", "forgetting")]
        lines.append(f"| {label} | {len(both[0])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_comparison(found, path: Path) -> None:
    """Figure 3 of the paper for both orders: a panel a task, a line a method (mean over seeds, band: one standard
    deviation), stages marked; below, the averages after the last stage as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    epochs = max(line["epoch"] for line in next(iter(found.values()))[0]["lines"])
    fig = plt.figure(figsize=(11, 11), layout="constrained")
    grid = fig.add_gridspec(4, 2, height_ratios=(1, 1, 1, 1.5))
    for column, order in enumerate(ORDERS):
        tasks = order.split(",")
        for row, task in enumerate(sorted(tasks, key=ORDERS[0].split(",").index)):
            ax = fig.add_subplot(grid[row, column])
            lines = {label: [s["lines"] for s in found.get((label, column), [])] for label in METHODS}
            draw_task(ax, task, tasks, epochs, lines)
            for stage, learned in enumerate(tasks):
                if row == 0:
                    ax.text((stage + 0.5) * epochs, 106, f"learns {learned}", ha="center", fontsize=9)
            ax.set_ylim(-3, 103)
            if row == len(tasks) - 1:
                ax.set_xlabel("epochs")
            if (row, column) == (0, 0):
                fig.legend(loc="outside upper center", ncols=len(METHODS), frameon=False)
    ax, labels = fig.add_subplot(grid[3, :]), [*METHODS, *FURTHER]
    for column, hatch in enumerate(("", "//")):
        shown = [(i, found[label, column]) for i, label in enumerate(labels) if (label, column) in found]
        values = [[s["average"] for s in runs] for _, runs in shown]
        colors = [METHODS[labels[i]][1] if labels[i] in METHODS else "0.6" for i, _ in shown]
        bars = ax.bar(
            [i + (0.4 * column - 0.2 if labels[i] in METHODS else 0) for i, _ in shown],
            [mean(v) for v in values],
            yerr=[stdev(v) if len(v) > 1 else 0 for v in values],
            width=0.38,
            color=colors,
            edgecolor="white",
            hatch=hatch,
            capsize=3,
        )
        ax.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    ax.set_xticks(range(len(labels)), labels, rotation=25, ha="right")
    ax.set(ylim=(0, 112), ylabel="average after the last stage, %")
    ax.set_title("plain: order woz, sql, cnn; hatched: cnn, woz, sql; whiskers: one standard deviation", fontsize=9)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main(argv=None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"error: {message} (--help lists the options)\n")  # one line
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--vocabulary", action="store_true", help="learn the vocabulary")
    what.add_argument("--pretrain", action="store_true", help="pretrain the model (13 minutes on 2 cores)")
    what.add_argument("--compare", action="store_true", help="all methods on toy tasks (hours); table and figure")
    parser.add_argument("--out", default=str(ASSETS), help="folder of what is made (default %(default)s)")
    parser.add_argument("--runs-dir", default="runs/nano", help="run directories of --compare (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs of --compare at once (default %(default)s)")
    o = parser.parse_args(argv)
    if o.jobs < 1:
        parser.error(f"--jobs {o.jobs}: must be a number of at least 1")
    out = Path(o.out)
    try:
        if o.vocabulary:
            train_vocabulary(out / "nano.tiktoken")
        elif o.pretrain:
            print(json.dumps(pretrain(out / "nano"), indent=2))
        else:
            compare(Path(o.runs_dir), o.jobs)
            found = collected()
            print(comparison_table(found))
            draw_comparison(found, out / "comparison.png")
        return 0
    except (RunError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: runs that have finished are kept; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
