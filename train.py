"""L2KD: lifelong language knowledge distillation (Chuang, Su, Chen; EMNLP 2020).

    python train.py                                     toy tasks and a tiny model, offline
    python train.py --order woz,sql,cnn --kd word       the paper's tasks and model, on a GPU

Algorithm 1, for each task m of the sequence (D_m its data, θ_T the teacher, θ_S the student, γ the share of replay):

     1   optimize teacher model on D_m to get parameters θ_T
     2   sample γ·|D_m| pseudo-data from θ_S to form D_prev
     3   for all training samples {X_i}, i = 1..n, of D_m do
     4       for i = 1 to n do
     5           update θ_S to minimize L_KD(X_i; θ_S; θ_T)
     6       end for
     7       sample n' = γn samples {X_j} from D_prev
     8       for j = 1 to n' do
     9           update θ_S to minimize L_NLL(X_j; θ_S)
    10       end for
    11   end for

`lifelong` below is this loop, and `learn` its lines 3 to 11. The methods differ by what they leave out:

    method         options            line 1   line 2   the current task's rows (line 5)     their target
    finetune       --method finetune                    QA rows                              the labels
    LAMOL          --kd none                   yes      QA and LM rows                       the labels
    Word-KD        --kd word          yes      yes      QA and LM rows                       the teacher's distribution
    Seq-KD         --kd seq           yes      yes      with the teacher's answers           the labels
    Seq-KD_soft    --kd seqsoft       yes      yes      with the teacher's answers           the teacher's distribution

The order of lines 4 to 10 is planned by `data.plan_epoch`. The default, --updates shuffled, merges them as the authors'
code does: current and replay samples are shuffled together. --updates alternate is the algorithm to the letter, with
batches in place of samples. `single` and `multitask` are not lifelong learning; they are the other rows of Table 3.
"""

import sys

import torch

import kd
import lamol
from data import encode_parts, make_batch, plan_epoch
from lab.run import Run, command_line

# ---------------------------------------------------------------------- training


def learning_rate(samples_seen, n_samples, epochs, lr, warmup_ratio):
    """The rate of the next update: it rises over a share of the first epoch, then falls, as in the authors' code.

    It is counted in samples: those seen since the task began, and n_samples of one epoch, current and replay. With a
    warm-up the first update's rate is 0. The last one's is not quite, since the fall begins after the warm-up."""
    warmup = int(warmup_ratio * n_samples)
    if warmup > 0 and samples_seen <= warmup:
        return lr * samples_seen / warmup
    return lr * (n_samples * epochs - (samples_seen - warmup)) / (n_samples * epochs)


def annealed(first, last, epoch, epochs):
    """The temperature of an epoch, which are counted from 1: it goes from `first` to `last` by equal steps.

    The paper's is constant. To begin with soft targets and to end with sharp ones is the idea of Annealing-KD (Jafari
    et al., EACL 2021)."""
    return first + (last - first) * (epoch - 1) / max(epochs - 1, 1)


def batch_size(n: int) -> int:
    """How many samples an update has; n counts current and replay samples. In the authors' code GPU memory bounds it
    further."""
    return max(n // 1500, 4)


def build_optimizer(model, args):
    """AdamW, a new one for each task. Biases and layer norms have no weight decay."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.lr, fused=True)


def set_rates(optimizer, lr, epsilon, t):
    """The rate and the ε of update t = 1, 2, ... The authors' AdamW adds ε before the bias correction of the second
    moment, torch's adds it after: so ε is corrected, too. Where gradients are not far above ε it matters."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["eps"] = epsilon / (1 - group["betas"][1] ** t) ** 0.5


def learn(run, model, phase, current, replay=(), teacher=None, before_step=None):
    """Lines 3 to 11 of Algorithm 1: train a model on current and replay samples, both lists of data.Sample.

    phase: a lab.run.Phase, which says whose epochs these are. teacher: a kd.Teacher, whose distribution the current
    samples learn; without one they learn their labels. before_step(run, model): a hook for gradients that are clipped
    and applied next."""
    args, samples = run.args, [*current, *replay]
    n = len(samples)
    size = args.batch_size or batch_size(n)
    optimizer = build_optimizer(model, args)
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
    one = torch.ones((), device=run.device)
    if teacher:
        teacher.remember(current, run.lm_rows, run.teacher_cache())
    progress = run.progress(phase, model, optimizer, scaler, samples)
    for epoch in progress.epochs():
        model.train()
        temperature = annealed(args.temperature, args.last_temperature or args.temperature, epoch, phase.epochs)
        # which samples are in which update (Alg. 1, lines 4, 7, 8)
        plan = plan_epoch(len(current), len(replay), size, args.updates, progress.generator_for("batches"))
        for indices in progress.updates(plan):
            # ------------------------------------------------------------ one update (Alg. 1, lines 5 and 9)
            batch = make_batch(samples, indices, len(current), run.lm_rows, teacher is not None, run.layout)
            weights = kd.token_weights(batch, run.replay_loss, run.tokenizer.ans_id, args.ans_weight, args.lm_lambda)
            for group, w in run.own_groups(batch, weights):
                with run.autocast():
                    # the chunked loss makes its gradients at once, so it must know the loss scale, too
                    loss, parts = kd.group_loss(model, teacher, group, w, temperature, scaler.scale(one))
                scaler.scale(loss).backward()
                progress.add(group, parts)
            run.sum_gradients(model)
            scaler.unscale_(optimizer)
            if before_step:
                before_step(run, model)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            lr = learning_rate(progress.samples_seen, n, phase.epochs, args.lr, args.warmup_ratio)
            set_rates(optimizer, lr, args.adam_epsilon, progress.steps + 1)
            scaler.step(optimizer)  # skipped where a gradient in float16 has overflowed
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            # ------------------------------------------------------------
            progress.end_update(grad_norm=norm, lr=lr, temperature=temperature)  # counts samples_seen and steps
    model.eval()


def get_teacher(run, task):
    """Alg. 1, line 1: the teacher of a task, a GPT, loaded if it was trained before.

    It starts from the pretrained weights and learns its task alone by NLL, so it is the `single` model of Table 3."""

    def train_teacher(phase):
        model = run.new_teacher()
        learn(run, model, phase, run.samples[task.name])
        return model

    return run.saved_teacher(task, train_teacher)


def teacher_answers(run, teacher, task, stage):
    """Section 2.2, Seq-KD: the task's samples (a list of data.Sample), with each answer replaced by the teacher's,
    greedy or by beam search.

    Context and question stay the real ones. An answer that never stopped gets no EOS."""
    tok, samples, lines = run.tokenizer, [], []
    for example, ids in zip(task.train, run.answers(teacher.model, task, task.train, run.args.kd_beam)):
        stopped = ids[-1:] == [tok.eos_id]
        answer = ids[:-1] if stopped else ids
        c, q = tok.encode(example.context), tok.encode(example.question)
        samples.append(encode_parts(c, q, answer, tok.task_id(task.name), tok, run.max_len, stopped, example.id))
        lines.append({"id": example.id, "answer": tok.decode(answer), "ids": ids, "stopped": stopped})
    run.write_lines(stage, task, "distil.jsonl", lines)
    same = sum(line["answer"] == e.answer.strip() for line, e in zip(lines, task.train))
    fitting = [sample for sample in samples if sample is not None]
    too_long = f"; {len(samples) - len(fitting)} are too long and left out" if len(fitting) < len(samples) else ""
    print(f"teacher  of {task.name} reproduces {same} of {len(lines)} training answers{too_long}")
    return fitting


def replay_samples(run, student, previous, n_new, task, stage):
    """Alg. 1, line 2: pseudo-data of the previous tasks, a list of data.Sample, from the student as the last stage left
    it. n_new: how many samples the new task has."""
    args, tok, samples = run.args, run.tokenizer, []
    n = lamol.pseudo_per_task(n_new, args.gamma, len(previous))
    for old in previous if n > 0 else []:
        generator = run.generator_for(stage, old.name, "replay")
        if args.replay == "real":
            samples += lamol.real_samples(run.samples[old.name], tok, old.name, n, generator)
        else:
            with run.autocast():
                samples += lamol.generated_samples(student, tok, old.name, n, run.max_len, args.top_k, generator)
    if samples:
        run.write_lines(stage, task, "pseudo.jsonl", [lamol.as_line(sample, tok) for sample in samples])
        print(lamol.report(samples))
    elif previous and args.gamma > 0:
        few = f"γ · n = {args.gamma:g} · {n_new} is less than one sample for each of {len(previous)} earlier tasks"
        print(f"WARNING: nothing is replayed in this stage: {few}")
    return [pseudo.sample for pseudo in samples if not pseudo.rejected]


# ---------------------------------------------------------------------- the methods


def lifelong(run, before_step=None, after_stage=None):
    """Algorithm 1, and what it becomes without some of its lines: see the table above.

    Hooks for methods of your own: before_step(run, model) before each update of the student, and
    after_stage(run, model, samples) after each stage. What they keep in `run.kept` (tensors by name) is saved."""
    args, student = run.args, run.new_student()
    for m, task in run.stages(student):
        current, replay, teacher = run.samples[task.name], [], None
        if args.kd != "none":
            teacher = kd.Teacher(get_teacher(run, task), run.dtype)  # Alg. 1, line 1
        if args.method == "lamol":
            replay = replay_samples(run, student, run.tasks[: m - 1], len(current), task, m)  # Alg. 1, line 2
        if args.kd in ("seq", "seqsoft"):
            current = teacher_answers(run, teacher, task, m)
        if args.kd == "seq":
            teacher = None  # its answers are all that is learned from it
        learn(run, student, run.phase(m, task), current, replay, teacher, before_step)  # Alg. 1, lines 3 to 11
        del teacher  # its memory is free for the scores
        if after_stage:
            after_stage(run, student, [*current, *replay])
        run.end_stage(student, m, task)


def single(run):
    """Table 3, rows (1) and (2): a model for each task, on its own. Those of row (2) are the teachers."""
    for m, task in run.stages(run.new_teacher()):
        run.end_stage(get_teacher(run, task), m, task)


def multitask(run):
    """Table 3, rows (3) to (7): all tasks at once, each example with its own task's token."""
    model, samples = run.new_student(), []
    for m, all_tasks in run.stages(model):
        for task in run.tasks:
            if run.args.kd == "seq":
                teacher = kd.Teacher(get_teacher(run, task), run.dtype)
                samples += teacher_answers(run, teacher, task, m)
                del teacher
            else:
                samples += run.samples[task.name]
        learn(run, model, run.phase(m, all_tasks), samples)
        run.end_stage(model, m, all_tasks)


METHODS = {"finetune": lifelong, "lamol": lifelong, "single": single, "multitask": multitask}


def start(args) -> dict:
    """One run from its options to its summary. Raises LabError for what the user can mend."""
    with Run(args) as run:
        if not run.finished:
            METHODS[args.method](run)
        return run.finish()


def main(argv=None) -> int:
    """The command line. Returns the exit code: 0, 1 for bad data or a failed run, 2 for bad usage, 130 and 143 when
    interrupted."""
    return command_line(start, argv)


if __name__ == "__main__":
    sys.exit(main())
