"""How the tiny vocabulary and the tiny pretrained GPT-2 in lab/assets/ were made.

    python -m lab.nano --vocabulary     lab/assets/nano.tiktoken: 1,000 byte-pair tokens; EOS comes on top
    python -m lab.nano --pretrain       lab/assets/nano/: a GPT-2 of 1M parameters

Nothing is downloaded. The comparison of the methods on this model is in lab/paper.
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

import torch
from tqdm import tqdm

import kd
from lab.errors import expand_paths, replace_unprintable
from lab.files import write_folder, write_json, write_text
from lab.run.pretrained import NANO, PATTERN, nano_tokenizer, save_gpt
from lab.tasks.toy import GRAMMARS, toy_rows
from model import GPT, GPTConfig

ASSETS = NANO.parent

# ---------------------------------------------------------------------- the vocabulary


def train_vocabulary(path: Path, size: int = 1000) -> None:
    """Learn byte-pair merges on text of the toy tasks. Most of their words become one token, and any text encodes.

    The file has tiktoken's format: a line `<base64 of the token's bytes> <id>` a token, in order of the merges."""
    from tiktoken._educational import bpe_train

    rows = [row for task in GRAMMARS for row in toy_rows(task, "pretraining", 200)]
    text = "\n".join(f" {row[part]}" for row in rows for part in ("context", "question", "answer"))
    ranks = bpe_train(text, size, PATTERN, visualise=None)
    write_text(path, "".join(f"{base64.b64encode(token).decode()} {id}\n" for token, id in ranks.items()))


# ---------------------------------------------------------------------- what the model is pretrained on

SHAPE = GPTConfig(vocab_size=1001, n_positions=256, n_embd=128, n_layer=4, n_head=4)
STEPS, TOKENS, LENGTHS = 4500, 4096, (64, 64, 128, 256)  # updates, tokens of an update, lengths of its rows
LR, WARMUP = 2e-3, 100


def grammar_text(r: Random, texts: list[list[int]], eos_id: int, n: int) -> list[int]:
    """n tokens of contexts of the toy tasks, one after the other. There are no questions and no answers."""
    ids = []
    while len(ids) < n:
        ids += [*r.choice(texts), eos_id]
    return ids[:n]


def repeated_spans(r: Random, words: list[int], n: int) -> list[int]:
    """n tokens: random words, then copies of spans before them. To predict these is to copy from the context."""
    ids = r.choices(words, k=r.randint(4, min(32, n // 4)))
    while len(ids) < n:
        start = r.randrange(len(ids) - 3) if len(ids) > 4 and r.random() < 0.5 else 0
        ids += ids[start : start + r.randint(3, 24)]
    return ids[:n]


def batches(steps: int, tokenizer):
    """Yields a batch (B, T + 1) of ids for each step: half grammar text, half repeated spans. T changes by the step."""
    rows = [row for task in GRAMMARS for row in toy_rows(task, "pretraining", 3000)]
    texts = [tokenizer.encode(row["context"]) for row in rows]
    toy_words = sorted({i for row in rows for part in ("context", "answer") for i in tokenizer.encode(row[part])})
    r = Random(0)
    for _ in range(steps):
        T = r.choice(LENGTHS)
        half = TOKENS // T // 2
        batch = [grammar_text(r, texts, tokenizer.eos_id, T + 1) for _ in range(half)]
        batch += [repeated_spans(r, r.choice((toy_words, range(tokenizer.n_base))), T + 1) for _ in range(half)]
        yield torch.tensor(batch)


# ---------------------------------------------------------------------- pretraining


def first_model() -> GPT:
    """Random weights, always the same ones. GPT-2's initial scale is meant for 768 and more channels: here it is 4
    times as large."""
    torch.manual_seed(0)
    model = GPT(replace(SHAPE, dropout=0.0))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(4)
    return model


def recent(losses: list[list[float]]) -> dict[str, float]:
    """The mean loss of the last 100 steps by kind of text, in nats a token."""
    return {kind: round(sum(x) / len(x), 4) for kind, x in zip(("grammar text", "repeated spans"), zip(*losses[-100:]))}


def pretrain(folder: Path, steps: int = STEPS) -> dict:
    """Train a GPT-2 from random weights. Its weights (float16) and the recipe go into `folder`.

    It is the same in every run with the same torch and number of threads."""
    began, tokenizer, model, losses = time.time(), nano_tokenizer(), first_model(), []
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    bar = tqdm(batches(steps, tokenizer), "pretraining", steps)
    for step, ids in enumerate(bar):
        for group in optimizer.param_groups:
            group["lr"] = LR * min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * step / steps)))
        loss = kd.nll(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).view(2, -1).mean(dim=1)  # (2,)
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.tolist())
        bar.set_postfix_str(", ".join(f"{kind} {value:.3f}" for kind, value in recent(losses).items()))
    model.config = replace(SHAPE)  # whoever goes on with it has dropout
    extra = {"tokenizer": tokenizer.name, "eos_token_id": tokenizer.eos_id}
    write_folder(folder, lambda temporary: save_gpt(model, temporary, torch.float16, **extra))
    recipe = {"steps": steps, "tokens_a_step": TOKENS, "row_lengths": LENGTHS, "lr": LR, "warmup_steps": WARMUP}
    recipe |= {"final_loss_nats": recent(losses)}
    recipe |= {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    recipe |= {"seconds": round(time.time() - began)}
    write_json(folder / "recipe.json", recipe)
    return recipe


def main(argv=None) -> int:
    """The command line. Returns the exit code."""
    replace_unprintable()
    parser = argparse.ArgumentParser("python -m lab.nano", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"error: {message} (--help lists the options)\n")  # one line
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--vocabulary", action="store_true", help="learn the vocabulary")
    what.add_argument("--pretrain", action="store_true", help="pretrain the model (13 minutes on 2 cores)")
    parser.add_argument("--out", default=str(ASSETS), help="folder for what is made (default %(default)s)")
    o = parser.parse_args(argv)
    expand_paths(o, parser, "out")
    try:
        if o.vocabulary:
            train_vocabulary(Path(o.out) / "nano.tiktoken")
        else:
            print(json.dumps(pretrain(Path(o.out) / "nano"), indent=2))
        return 0
    except OSError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
