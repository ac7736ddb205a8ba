"""python model.py: a text on its way through a tiny GPT-2: ids, shapes, next words, the cache, packed rows."""

import torch

from eval import greedy
from lab.errors import Parser, command, replace_unprintable
from lab.fast.decode import decode
from lab.fast.packing import Packing
from lab.run.pretrained import load_gpt, nano_tokenizer
from lamol import top_k_sampler

TEXT = "the table has columns coach, year -- what is the coach if year is"


@command()
def main(argv=None) -> None:
    """The command line: there is nothing to choose."""
    Parser("python model.py", description=__doc__).parse_args(argv)
    show()


def show() -> None:
    replace_unprintable()
    model, tok = load_gpt("nano").eval(), nano_tokenizer()
    show_shape(model)
    prompt = tok.encode(TEXT)
    print(f"\n{TEXT}\n    ids {' '.join(map(str, prompt))}")
    with torch.no_grad():
        show_steps(model, tok, prompt)
        show_causality(model, tok, prompt)
        show_fast(model, tok, prompt)
    prompts = [prompt[:4], prompt[9:12]]
    for seed in (0, 1):
        pick = top_k_sampler(20, len(prompts), 8, torch.Generator().manual_seed(seed))
        news = decode(model, prompts, [8, 8], tok.eos_id, pick)
        print(f"sampled, seed {seed}: " + " | ".join(tok.decode(p + new) for p, new in zip(prompts, news)))


def show_shape(model) -> None:
    """The configuration, and where the parameters are."""
    c = model.config
    print(f"GPT-2 of {c.n_layer} layers, {c.n_head} heads, {c.n_embd} channels, a context of {c.n_positions} tokens")
    parts = {
        "wte": (model.wte, "tokens: the embedding and, tied, the head"),
        "wpe": (model.wpe, "positions"),
        "h": (model.h, "blocks"),
    }
    for name, (part, what) in parts.items():
        print(f"    {name:<4}{sum(p.numel() for p in part.parameters()):>10,} parameters    {what}")


def show_steps(model, tok, prompt) -> None:
    """The shape behind each step, and the likeliest next words."""
    print(f"    B, T, C = 1, {len(prompt)}, {model.config.n_embd}; what each step makes of them (blocks are alike):")
    steps = {"wte": model.wte, "h.0.attn": model.h[0].attn, "h.0.mlp": model.h[0].mlp, "h.0": model.h[0]}
    hooks = [
        module.register_forward_hook(lambda _, __, x, name=name: print(f"    {name:<10}{tuple(x.shape)}"))
        for name, module in (steps | {"ln_f": model.ln_f}).items()
    ]
    logits = model(torch.tensor([prompt]))
    for hook in hooks:
        hook.remove()
    print(f"    {'head':<10}{tuple(logits.shape)}    logits over V = {model.config.vocab_size} words")
    p, words = logits[0, -1].softmax(dim=-1).topk(5)
    likeliest = ", ".join(f"{tok.decode([i])!r} {x:.2f}" for x, i in zip(p.tolist(), words.tolist()))
    print(f"\nthe likeliest next words\n    {likeliest}")


def show_causality(model, tok, prompt) -> None:
    """Another last token changes no logits before it."""
    other = [*prompt[:-1], tok.eos_id]
    change = (model(torch.tensor([other])) - model(torch.tensor([prompt]))).abs().amax(dim=-1)[0]
    print(f"\ncausal: with another last token the logits change by {change[-1]:.1f} there,", end=" ")
    print(f"by {change[:-1].max():.1f} before it")


def show_fast(model, tok, prompt) -> None:
    """lab/fast computes the same: with a cache, and with packed rows."""
    (new,), slow = decode(model, [prompt], [8], tok.eos_id, greedy), list(prompt)
    for _ in new:
        slow.append(int(model(torch.tensor([slow]))[0, -1].argmax()))
    same = "the same" if slow[-len(new) :] == new else "others"
    print(f"cached: {tok.decode(new)!r}, a token a step; without a cache {same}")
    rows = [prompt, prompt[:5]]
    packing = Packing.of([len(row) for row in rows])
    ids = torch.tensor([[i for row in rows for i in row]])
    packed = model.hidden(ids, packing.position, packing.within_rows(model.causal))[0]
    apart = torch.cat([model.hidden(torch.tensor([row]))[0] for row in rows])
    print(f"packed: rows of {len(rows[0])} and {len(rows[1])} tokens as one of {len(packed)}:", end=" ")
    print(f"hidden states differ by {(packed - apart).abs().max():.0e} from those of each alone")
