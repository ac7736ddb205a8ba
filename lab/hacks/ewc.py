"""Elastic weight consolidation (Kirkpatrick et al. 2017), as two hooks of `train.lifelong`.

After each task the diagonal Fisher information F says how much each weight matters to it. While later tasks are
learned, weights that matter are held near what they were, θ*, by the gradient of the penalty

    STRENGTH / 2 · Σ_tasks Σ F (θ - θ*)²

F and θ* are in `run.kept`, and so in the checkpoints: a run that is resumed is the unbroken one, bit for bit.

    git apply lab/hacks/ewc.patch
    python train.py --method finetune --runs-dir runs/ewc
"""

import torch

import kd
from data import make_batch

STRENGTH = 1e6  # so large because the gradient that is squared is that of a mean over tokens


def before_step(run, model):
    """Add the gradient of the penalty."""
    for name, p in model.named_parameters():
        if f"fisher.{name}" in run.kept:
            F, before = run.kept[f"fisher.{name}"], run.kept[f"weights.{name}"]  # (tasks, *shape of p)
            p.grad += STRENGTH * (F * (p.detach() - before)).sum(dim=0)


def after_stage(run, model, samples):
    """Store the Fisher information and the weights, behind those of earlier tasks."""
    found = {f"fisher.{name}": F for name, F in fisher(run, model, samples).items()}
    found |= {f"weights.{name}": p.detach().clone() for name, p in model.named_parameters()}
    for name, x in found.items():
        earlier = [run.kept[name]] if name in run.kept else []
        run.kept[name] = torch.cat([*earlier, x[None]])


def fisher(run, model, samples):
    """The mean square of the gradient of each sample's loss: the diagonal of the empirical Fisher information, but for
    the loss being a mean over tokens."""
    F = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(len(samples)):
        batch = make_batch(samples, [i], len(samples), run.lm_rows, layout=run.layout)
        weights = kd.token_weights(
            batch, run.replay_loss, run.tokenizer.ans_id, run.args.ans_weight, run.args.lm_lambda
        )
        for group, w in run.own_groups(batch, weights):
            with run.autocast():
                loss, _ = kd.group_loss(model, None, group, w, run.args.temperature)
            loss.backward()
        run.sum_gradients(model)
        for name, p in model.named_parameters():
            F[name] += p.grad**2 / len(samples)
        model.zero_grad()
    return F
