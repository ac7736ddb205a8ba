"""What a run prints at its beginning and its end, and its learning curves."""

import textwrap

from lab.files import read_jsonl
from lab.run.options import flag, model_reason, without_effect
from lab.tasks.ceiling import ceiling_line


def announce(run, why_device: str) -> None:
    """Print what will be done, and the reason for what was not asked for."""
    args = run.args
    sizes = ", ".join(f"{task.name} ({len(task.train)} / {len(task.test)})" for task in run.tasks)
    size = f"{millions(run.pretrained)} parameters, rows of at most {run.max_len} tokens"
    print(f"run      {run.dir}")
    print(f"tasks    {sizes}, train / test examples")
    for task in run.tasks:
        if line := ceiling_line(task, run.ceiling[task.name]):
            print(f"ceiling  {task.name}: {line}")
    print(f"model    {args.model} ({model_reason(args)}): {size}")
    if run.teacher_start is not run.pretrained:
        print(f"teachers {args.teacher_model}: {millions(run.teacher_start)} parameters")
    print(f"device   {run.device}, {str(run.dtype).removeprefix('torch.')} ({why_device})")
    how = f"γ {args.gamma:g}, {args.epochs} epochs, seed {args.seed}, replay loss {run.replay_loss}"
    print(f"method   {args.method}, kd {args.kd}, {how}")
    if args.multi_reference and not any("references" in e.meta for task in run.tasks for e in task.test):
        print("note     --multi-reference has no effect: no test example has several references")
    for name in without_effect(args):
        print(f"note     {flag(name)} has no effect with --method {args.method} --kd {args.kd}")


def millions(model) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M"


# ---------------------------------------------------------------------- worked examples


def worked_examples(run) -> str:
    """Three answers a task of the last student, and two pseudo-samples a task and stage."""
    answers, pseudo = {}, {}
    for folder in stage_folders(run):
        predictions = read_jsonl(folder / "predictions.jsonl", task=str, prediction=str)
        for task in run.tasks:  # the last stage's stand
            of_task = [line["prediction"] for line in predictions if line["task"] == task.name]
            answers[task.name] = of_task or answers.get(task.name, [])
        path, texts = folder / "pseudo.jsonl", ("task", "source", "rejected", "context_and_question", "answer")
        for line in read_jsonl(path, **dict.fromkeys(texts, str)) if path.exists() else ():
            pseudo.setdefault((line["task"], line["source"], folder.name), []).append(line)
    lines = []
    for task in run.tasks:
        lines.append(f"\n{task.name}, answers to the first test examples after the last stage")
        for e, answer in list(zip(task.test, answers[task.name]))[:3]:
            gold = "" if answer == e.answer.strip() else f"    (gold: {shorten(e.answer)})"
            lines.append(f"    {shorten(f'{e.context} | {e.question}')}\n        -> {shorten(answer)}{gold}")
    for (task, source, folder), samples in pseudo.items():
        what = "pseudo-samples generated" if source == "generated" else "real samples replayed"
        lines.append(f"\n{task}, {what} before {folder}")
        for x in sorted(samples, key=lambda x: bool(x["rejected"]))[:2]:
            rejected = f"    (rejected: {x['rejected']})" if x["rejected"] else ""
            lines.append(f"    {shorten(x['context_and_question'])}\n        -> {shorten(x['answer'])}{rejected}")
    return "\n".join(lines)


def stage_folders(run) -> list:
    """The folders of the stages that were evaluated, in order."""
    folders = (folder for m in range(1, len(run.tasks) + 1) for folder in run.dir.glob(f"{m}-*"))
    return [folder for folder in folders if (folder / "predictions.jsonl").exists()]


def shorten(text: str) -> str:
    return textwrap.shorten(text, 160, placeholder=" ...") or "(nothing)"


# ---------------------------------------------------------------------- curves.png


def draw_run(order: list[str], epochs: int, rows: list[dict], path) -> None:
    """Figure 3 of one run: a panel for each task, its score over the epochs of all stages.

    Dashed lines part the stages. rows: the lines of scores.jsonl; epochs: of a stage without lines."""
    from matplotlib.figure import Figure  # without pyplot it looks for no display, and leaves a notebook's alone

    fig = Figure(figsize=(7, 1.2 + 1.7 * len(order)))
    axes = fig.subplots(len(order), 1, sharex=True, squeeze=False)
    last = max(row["stage"] for row in rows)
    ends = [0]  # the epochs until the end of each stage; in a continued run stages may differ in length
    for stage in range(1, last + 1):
        ends.append(ends[-1] + max((row["epoch"] for row in rows if row["stage"] == stage), default=epochs))
    for task, ax in zip(order, axes[:, 0]):
        points = sorted((ends[max(0, x["stage"] - 1)] + x["epoch"], x["score"]) for x in rows if x["task"] == task)
        ax.plot(*zip(*points), marker="o", markersize=3, color="0.25")
        for end in ends[1:-1]:
            ax.axvline(end, linestyle="--", linewidth=0.8, color="0.5")
        ax.set(ylim=(-3, 103), ylabel=f"{task}, %")
        ax.grid(alpha=0.3)
    if last == len(order):
        for stage, task in enumerate(order):
            middle = (ends[stage] + ends[stage + 1]) / 2 / ends[-1]
            axes[0, 0].text(middle, 1.04, f"learns {task}", transform=axes[0, 0].transAxes, ha="center", fontsize=9)
    axes[-1, 0].set(xlabel="epochs", xlim=(0, ends[-1]))
    fig.tight_layout()
    fig.savefig(path, dpi=130, format="png")
