"""L2KD: lifelong language knowledge distillation (Chuang, Su, Chen; EMNLP 2020).

    python train.py --order woz,sql,cnn --kd word

Algorithm 1, for each task m of the stream (D_m its data, θ_T the teacher, θ_S the student, γ the pseudo-data rate):

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

`lifelong` below is this loop; finetune, LAMOL, Word-KD, Seq-KD and Seq-KD_soft differ by one branch each. `single` and
`multitask` are the rows that are no lifelong learning (Table 3).
"""

import sys
import time
from functools import partial

import torch
from tqdm import tqdm

import kd
import lamol
from data import IGNORE, DataError, encode_parts, make_batch, plan_epoch
from lab import ranks, rundir
from lab.log import TrainingLog
from lab.options import Options, parse
from lab.run import Run
from lab.rundir import RunError, interruption, seed_of, stream
from model import ModelFileError, move

# ---------------------------------------------------------------------- training


def learning_rate(samples_seen, n_samples, epochs, lr, warmup_ratio):
    """The rate of the next update, counted in samples: warm-up over a share of one epoch, then linear (as released).

    n_samples: of one epoch, current and replay. The decay spans all epochs from the end of the warm-up on."""
    warmup = int(warmup_ratio * n_samples)
    if warmup > 0 and samples_seen <= warmup:  # so the first update's rate is 0
        return lr * samples_seen / warmup
    return lr * (n_samples * epochs - (samples_seen - warmup)) / (n_samples * epochs)


def batch_size(n: int) -> int:
    """Examples an update; n counts current and replay samples (as released; there GPU memory bounds it further)."""
    return max(n // 1500, 4)


def optimizer_of(model, o: Options):
    """AdamW, new for each task; no weight decay on biases and layer norms."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=o.lr, eps=o.adam_epsilon, fused=True)


def learn(run, model, current, replay, stage, name, phase="student", epochs=0, teacher=None, lm=True, after_epoch=None):
    """Lines 3-11 of Algorithm 1: train on current and replay samples; with a teacher, current ones by its distribution.

    current, replay: lists of Encoded. lm: learn LM rows too. after_epoch(epoch) is called after all but the last."""
    o, samples, n = run.o, current + replay, len(current) + len(replay)
    epochs, optimizer = epochs or o.epochs, optimizer_of(model, o)
    first = 2.0**16 / ranks.size()  # `ranks.shared` multiplies token weights with their number
    scaler = torch.amp.GradScaler(run.device.type, init_scale=first, enabled=run.dtype == torch.float16)
    if o.compile:
        for block in model.h:
            block.compile(dynamic=True)
    where = {"phase": phase, "stage": stage, "name": name}
    done, seen = run.restore(where, model, optimizer, scaler)  # epochs; samples, which the schedule counts in
    rows_loss = ranks.rows_loss(model)  # kd.rows_loss of this model
    for epoch in range(done + 1, epochs + 1):
        model.train()
        torch.manual_seed(seed_of(o.seed, stage, name, f"{phase} dropout", epoch) + ranks.rank())
        order = stream(o.seed, stage, name, f"{phase} batches", epoch)
        # who is in which update (Alg. 1, lines 4, 7, 8)
        plan = plan_epoch(len(current), len(replay), o.batch_size or batch_size(n), o.updates, order)
        quiet = ranks.rank() > 0 or None  # None: where nobody watches
        bar = tqdm(plan, f"{phase} {name}, epoch {epoch}/{epochs}", disable=quiet, leave=False, unit="batch")
        run.log = log = TrainingLog(run, name, phase, epoch, bar, samples)
        for step, indices in enumerate(interruption.between(bar), 1):  # Ctrl-C waits for the end of an update
            # ------------------------------------------------------------ one update (Alg. 1, lines 5 and 9)
            how = {"distil": teacher is not None, "lm": lm, "micro_batch": o.micro_batch}
            batch = make_batch(samples, indices, len(current), **how, kind=run.device.type, ranks=ranks.size())
            log.begin(step, indices, batch)
            weights = kd.token_weights(batch, run.rule, run.tokenizer.ans_id, o.ans_weight, o.lm_lambda)
            lr = learning_rate(seen, n, epochs, o.lr, o.warmup_ratio)
            scale = scaler.get_scale()  # the fused loss takes its gradients in the forward: they are scaled there
            for rows, w in ranks.shared(batch, weights, rows_loss):
                rows = rows.to(run.device)
                with run.autocast():
                    loss, *parts = rows_loss(teacher, rows, move(w, run.device), o.temperature, scale)
                scaler.scale(loss).backward()
                log.add(parts)
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), o.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = lr
            scaler.step(optimizer)  # skipped by the scaler where a half-precision gradient overflowed ...
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            if scaler.get_scale() >= scale:  # ... and then the schedule stands still too
                seen += len(indices)
            # ------------------------------------------------------------
            log.end(norm, may_overflow=scaler.is_enabled() and scale >= 1)
            if step % o.log_every == 0 or step == len(plan):
                log.write(lr)
        print(f"{phase} {name}, epoch {epoch}/{epochs}: {log.said}")
        if after_epoch and epoch < epochs:
            after_epoch(epoch)
        run.checkpoint(where | {"epoch": epoch, "seen": seen}, model, optimizer, scaler)
    run.log = None
    model.eval()


def get_teacher(run, task):
    """Alg. 1, line 1: the teacher of a task, found again where it was made before.

    It starts from the pretrained weights and learns its task alone by NLL: it IS the `single` model of Table 3."""
    o = run.o
    epochs = min(o.epochs, 9) if o.method == "multitask" else o.epochs  # row (7): single-task teachers, trained as such
    folder, key = run.teacher_folder(task, epochs)
    if not ranks.told(folder.is_dir()):
        with rundir.one_at_a_time(folder) as waited:
            run.began += waited
            if not ranks.told(folder.is_dir()):
                return make_teacher(run, task, epochs, folder, key)
    print(f"teacher  of {task.name}: found in {folder}")
    return run.found_teacher(task, folder)


def make_teacher(run, task, epochs, folder, key):
    """A teacher, taught and kept."""
    o, model = run.o, run.fresh()
    learn(run, model, run.encoded[task.name], [], 0, task.name, "teacher", epochs, lm=not o.qa_only)
    seconds = round(time.time() - run.phase_began, 1)
    run.teacher_times[task.name] = run.made_here[task.name] = seconds
    scores, predictions = run.examine(model, task, 0, epochs)

    def fill(temporary):
        run.save(model, temporary / "model")
        rundir.write_jsonl(temporary / "predictions.jsonl", predictions)
        rundir.write_jsonl(temporary / "scores.jsonl", [scores])
        rundir.write_json(temporary / "config.json", key | {"seconds": seconds})

    rundir.write_folder(folder, fill)
    print(f"teacher  of {task.name}: {scores['score']:.1f}, kept in {folder}")
    return model


def frozen(run, teacher):
    """A teacher as distillation uses it: fixed, in the compute dtype."""
    return teacher.eval().requires_grad_(False).to(run.dtype)


def soft_targets(run, teacher, current) -> kd.Teacher:
    """The teacher of lines 3-11, with what it has to say of the current samples if --teacher-cache has room for it."""
    soft = kd.Teacher(teacher)
    tokens = sum(label != IGNORE for x in current for label in (*x.qa_labels, *x.lm_labels))
    if tokens * teacher.config.n_embd * run.dtype.itemsize <= run.o.teacher_cache:
        batch = make_batch(current, range(len(current)), len(current), distil=True, kind=run.device.type)
        with run.autocast():
            soft.remember(rows.to(run.device) for rows in batch)
    return soft


def teacher_answers(run, teacher, task, folder):
    """Section 2.2, Seq-KD: the task's rows with the teacher's answers (greedy or by beam search) for the data's.

    Context and question stay the real ones; an answer that never stopped gets no EOS."""
    tok, rows, lines = run.tokenizer, [], []
    for example, ids in zip(task.train, run.answers(teacher, task, task.train, run.o.kd_beam)):
        stopped = ids[-1:] == [tok.eos_id]
        answer = ids[:-1] if stopped else ids
        c, q = tok.encode(example.context), tok.encode(example.question)
        rows.append(encode_parts(c, q, answer, tok.task_id(task.name), tok, run.max_len, stopped, example.id))
        lines.append({"id": example.id, "answer": tok.decode(answer), "ids": ids, "stopped": stopped})
    rundir.write_jsonl(folder / "distil.jsonl", lines)
    same = sum(line["answer"] == e.answer.strip() for line, e in zip(lines, task.train))
    kept = [row for row in rows if row is not None]
    lost = f"; {len(rows) - len(kept)} too long, left out" if len(kept) < len(rows) else ""
    print(f"teacher  of {task.name} answers {same} of {len(lines)} training examples as the data does{lost}")
    return kept


def replay_samples(run, student, previous, n_new, stage, folder):
    """Alg. 1, line 2: pseudo-data of the earlier tasks, from the student as the last stage left it."""
    o = run.o
    count = lamol.pseudo_per_task(n_new, o.gamma, len(previous))
    if not count:
        return []

    def seeds(name):
        return stream(o.seed, stage, name, "replay")

    names = [task.name for task in previous]
    if o.real_replay:
        pseudo = lamol.real_samples({name: run.encoded[name] for name in names}, run.tokenizer, count, seeds)
    else:
        with run.autocast():
            pseudo = lamol.sample_pseudo_data(student, run.tokenizer, names, count, run.max_len, o.top_k, seeds)
    lines = []
    for d in pseudo:
        parts = lamol.parse_pseudo(d.ids, run.tokenizer) or (d.ids, [])
        text = {"context_and_question": run.tokenizer.decode(parts[0]), "answer": run.tokenizer.decode(parts[1])}
        lines.append({"task": d.task, "rejected": d.rejected, **text, "ids": d.ids})
    rundir.write_jsonl(folder / "pseudo.jsonl", lines)
    print(lamol.report(pseudo))
    return [d.encoded for d in pseudo if not d.rejected]


# ---------------------------------------------------------------------- the methods


def lifelong(run):
    """Algorithm 1. finetune keeps line 5 alone, on QA rows (as released); lamol --kd none leaves out line 1."""
    o, student = run.o, run.student()
    if not run.stages_done:
        run.score(student, run.tasks, 0, 0, once=True)
    for m, task in list(enumerate(run.tasks, 1))[run.stages_done :]:
        folder = run.dir / f"{m}-{task.name}"
        current, replay, teacher, soft = run.encoded[task.name], [], None, None  # the last task's teacher goes
        if o.kd != "none":
            teacher = frozen(run, get_teacher(run, task))  # Alg. 1, line 1
        if o.method == "lamol":
            replay = replay_samples(run, student, run.tasks[: m - 1], len(current), m, folder)  # Alg. 1, line 2
        if o.kd in ("seq", "seqsoft"):
            current = teacher_answers(run, teacher, task, folder)
        if o.kd in ("word", "seqsoft"):
            soft = soft_targets(run, teacher, current)
        curve = partial(run.score, student, run.tasks, m) if o.eval_every_epoch else None
        learn(  # Alg. 1, lines 3-11
            run, student, current, replay, m, task.name, teacher=soft, lm=o.method != "finetune", after_epoch=curve
        )
        run.end_stage(student, m, task.name, run.tasks)


def single(run):
    """Table 3, rows (1) and (2): a model for each task, on its own. These are the teachers."""
    for m, task in list(enumerate(run.tasks, 1))[run.stages_done :]:
        run.score(run.fresh(), [task], 0, 0, once=True)
        run.end_stage(get_teacher(run, task), m, task.name, [task])


def multitask(run):
    """Table 3, rows (3) to (7): all tasks at once, each example with its own task's token."""
    o, model, rows, name = run.o, run.fresh(), [], "+".join(run.slots)
    run.score(model, run.tasks, 0, 0, once=True)
    for task in run.tasks:
        if o.kd == "seq":
            teacher = frozen(run, get_teacher(run, task))
            rows += teacher_answers(run, teacher, task, run.dir / f"1-{name}" / task.name)
        else:
            rows += run.encoded[task.name]
    curve = partial(run.score, model, run.tasks, 1) if o.eval_every_epoch else None
    learn(run, model, rows, [], 1, name, lm=not o.qa_only, after_epoch=curve)
    run.end_stage(model, 1, name, run.tasks)


METHODS = {"finetune": lifelong, "lamol": lifelong, "single": single, "multitask": multitask}


def start(o: Options) -> dict:
    """One run from options to summary. Raises DataError, ModelFileError, RunError."""
    run = Run(o)
    if run.finished:
        return run.show()
    with run.watched():
        METHODS[o.method](run)
        return run.finish()


def main(argv=None) -> int:
    """The command line. Returns the exit code: 0, 1 for bad data or a failed run, 130 and 143 for interrupted."""
    sys.stdout.reconfigure(errors="replace")  # γ is no letter everywhere
    with ranks.joined():
        try:
            with interruption.caught():
                with ranks.rank_0_first():
                    o = parse(argv)
                start(o)
            return 0
        except (DataError, ModelFileError, RunError, OSError) as e:
            sys.stderr.write(f"error: {e}\n")  # in one piece: other ranks may have something to say too
            return 1
        except KeyboardInterrupt as e:
            if ranks.rank() == 0:
                print(f"interrupted{e}" if str(e) else "interrupted before the run began", file=sys.stderr)
            return interruption.code


if __name__ == "__main__":
    sys.exit(main())
