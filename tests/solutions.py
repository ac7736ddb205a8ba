"""Solutions of the assignment: wrong ones, each an edit of the reference's function, and right ones that are written
in other ways."""

SHARE = "[k * n_replay // n : (k + 1) * n_replay // n]"
PLAN = "return [batch for batch in plan if batch]"
PART = 'lm + 2 * replay if rule == "added" else lm.long()'
KL = 'F.kl_div(student, teacher, reduction="none", log_target=True)'
LARGE_K = "a_k_above_the_vocabulary_keeps_all"
NOT_A_WHOLE_NUMBER = "gamma_n_is_rounded_up the_total_is_shared_equally gamma_0_replays_nothing"
BOTH_AVERAGES = "average_is_of_the_last_stage average_of_single_is_of_its_models"
BY_GROUP = "return [w for group in batch for w in whole([group], *rest)]"

# function -> (what stands there, what a student has written, the laws that break)
WRONG = {
    "data.encode_parts": [
        ("len(context + q) + answer + [end]", "(len(context + q) + 1) + answer", "labels_are_the_next_tokens"),
        ("lm_labels=[*qa_ids, end]", "lm_labels=[task_id, *qa_ids]", "labels_are_the_next_tokens"),
        ("if stopped and len(a) <= room", "if stopped", "a_cut_answer_has_no_eos"),
        ("if stopped and len(a) <= room", "if len(a) <= room", "an_answer_that_never_stopped_has_no_eos"),
        ("[IGNORE] * len(context + q) + answer", "qa_ids[1:]", "the_qa_row_learns_the_answer_alone"),
        ("context = c[: max", "context = c if room > 3 else c[::-1][: max", "the_context_keeps_its_first_tokens"),
        ("room < min(1, len(a))", "room < 1", "none_where_no_answer_fits"),
        ("answer_cut=len(a) - len(answer)", "answer_cut=0", "what_was_cut_is_counted"),
        ("lm_ids=[task_id", "lm_ids=[end", "both_rows_have_their_ids the_context_keeps_its_first_tokens"),
    ],
    "data.plan_epoch": [
        (PLAN, "return [b for k in range(n) for b in plan[2 * k :][:2][::-1] if b]", "current_samples_come_first"),
        (PLAN, "return [b for b in plan[::2] + plan[1::2] if b]", "each_batch_is_followed_by_its_share"),
        (PLAN, "return plan", "no_update_is_empty"),
        (SHARE, "[k * (n_replay // n) : (k + 1) * (n_replay // n)]", "every_sample_once_an_epoch"),
        (SHARE, "[k * (n_replay // n) :][: n_replay // n if k < n - 1 else None]", "shares_differ_by_one_at_most"),
        ("[k * batch_size : (k + 1) * batch_size]", SHARE.replace("replay", "current"), "current_batches_are_full"),
        ("torch.randperm(n_current, generator=generator).tolist()", "[*range(n_current)]", "both_kinds_are_shuffled"),
        ("generator=generator).tolist()]\n", ").tolist()]\n", "both_kinds_are_shuffled"),
    ],
    "kd.nll": [
        (', reduction="none")\n\n\ndef word', ")\n\n\ndef word", "a_loss_for_each_token"),
        ("return F.cross_entropy", "return 1.4427 * F.cross_entropy", "natural_logarithm"),
        ("return F.cross_entropy", "return -F.cross_entropy", "natural_logarithm nll_has_a_gradient"),
        ("cross_entropy(logits,", "cross_entropy(logits.detach(),", "nll_has_a_gradient"),
    ],
    "kd.word_kd": [
        ("return temperature**2 *", "return temperature *", "temperature_squared"),
        ("return temperature**2 *", "return", "temperature_squared"),
        (".sum(dim=-1)\n", ".mean(dim=-1)\n", "summed_over_the_vocabulary"),
        ("F.kl_div(student, teacher", "F.kl_div(teacher, student", "from_the_teacher_to_the_student"),
        (KL + ".sum(dim=-1)", KL.replace("none", "batchmean"), "a_distance_for_each_token"),
        (KL, "-(teacher.exp() * student)", "zero_where_both_agree summed_over_the_vocabulary"),
        ("student_logits / temperature", "student_logits.detach() / temperature", "word_kd_has_a_gradient"),
        (KL, "(teacher.exp() * (teacher.exp() / student.exp()).log())", "finite_for_impossible_words"),
    ],
    "kd.token_weights": [
        (PART, "lm.long()", "added_is_two_means"),
        (PART, "lm + 2 * replay", "joint_is_one_mean"),
        ("else lm.long()", "else 0 * lm", "row_kinds_are_apart"),
        ("torch.where(group.labels == ans_id, ans_weight, 1.0)", "torch.ones(len(group.lm))", "ans_counts_five_times"),
        (".index_fill(0, group.soft, 1.0)", "", "a_soft_ans_counts_once"),
        ("index_add(0, part, weights)", "index_add(0, part, 0 * weights + 1)", "ans_counts_in_the_divisor"),
        (" * torch.where(lm, lm_lambda, 1.0)", "", "lambda_weighs_the_lm_rows"),
        (
            "def token_weights(",
            f"def token_weights(batch, *rest):\n    {BY_GROUP}\n\n\ndef whole(",
            "over_the_whole_batch",
        ),
    ],
    "lamol.pseudo_per_task": [
        ("(n_new * gamma) // n_previous", "(n_new * gamma / n_previous)", "the_total_is_shared_equally"),
        ("// n_previous if", "// float(n_previous) if", NOT_A_WHOLE_NUMBER),
        ("math.ceil(n_new * gamma)", "int(n_new * gamma)", "gamma_n_is_rounded_up"),
        (" if n_previous else 0\n", "\n", "the_first_task_replays_nothing"),
        ("(n_new * gamma) // n_previous if", "(n_new * gamma) // n_previous or 1 if", "gamma_0_replays_nothing"),
    ],
    "lamol.top_k_filter": [
        (
            "logits.topk(min(k, logits.size(-1)), dim=-1)",
            "logits.flatten().topk(k)",
            f"each_row_has_its_own_k {LARGE_K}",
        ),
        ("logits < kth, -", "torch.ones_like(logits).scatter(-1, logits.argsort(-1)[..., -k:], 0) > 0, -", "ties_stay"),
        ("    if k <= 0:\n        return logits\n", "", "k_0_keeps_all"),
        ("min(k, logits.size(-1)), dim=-1", "k, dim=-1", "a_k_above_the_vocabulary_keeps_all"),
        ("logits < kth", "logits <= kth", f"the_k_likeliest_stay each_row_has_its_own_k ties_stay {LARGE_K}"),
    ],
    "lamol.why_rejected": [
        ("not ids or not tokenizer", "not tokenizer", "it_begins_with_a_task_token"),
        ("not tokenizer.is_task(ids[0])", "False", "it_begins_with_a_task_token"),
        ("if ids[-1] != tokenizer.eos_id:", "if False:", "it_has_stopped"),
        ("if tokenizer.eos_id in inside:", "if False:", "it_has_one_eos"),
        ("inside.count(tokenizer.ans_id) != 1", "tokenizer.ans_id not in inside", "it_has_one_ans"),
        ("(inside[0], inside[-1])", "inside[:1]", "there_is_text_before_and_after_ans"),
        ("tokenizer.pad_id in inside or ", "", "no_other_special_token_is_inside"),
        ("if ids[-1] != tokenizer.eos_id:", "if True:", "a_whole_example_is_a_sample"),
    ],
    "eval.summarise": [
        ("for task in order]),", "for task in order[:-1]]),", BOTH_AVERAGES),
        ("final_scores(method, o", "final_scores('lamol', o", "average_of_single_is_of_its_models"),
        ("r(n, j) - r(j, j)", "r(j, j) - r(n, j)", "backward_transfer_is_below_0_where_it_was_forgotten"),
        ("best(j) - r(n, j)", "r(n, j) - best(j)", "forgetting_is_from_the_best_score_before"),
        ("best(j) - r(n, j)", "r(j, j) - r(n, j)", "forgetting_is_from_the_best_score_before"),
        ("for i in range(n) if order", "for i in range(n + 1) if order", "forgetting_is_from_the_best_score_before"),
        ("r(j, j + 1) - r(0", "r(j + 1, j + 1) - r(0", "forward_transfer_is_before_a_task_is_learned"),
        ('() if method in ("single", "multitask") else ', "", "single_and_multitask_have_no_transfer"),
        ("range(1, n)  #", "range(1, n) or 1 / 0  #", "one_task_has_no_transfer"),
    ],
    "train.lifelong": [
        ('if args.kd != "none":', 'if args.kd != "none" and m > 1:', "every_task_has_a_teacher"),
        ('if args.kd != "none":', "if True:", "without_distillation_there_is_no_teacher"),
        ("run.tasks[: m - 1]", "run.tasks[:m]", "pseudo_data_are_of_earlier_tasks"),
        ("len(current), task, m)", "int(0.2 * len(current)), task, m)", "pseudo_data_are_of_earlier_tasks"),
        ('if args.method == "lamol":', "if True:", "finetuning_replays_nothing"),
        ("teacher = None  # its", "pass  # its", "seq_kd_learns_labels_from_the_teachers_answers"),
        ('if args.kd == "seq":', 'if args.kd.startswith("seq"):', "seq_kd_soft_has_both"),
        ('args.kd in ("seq", "seqsoft")', 'args.kd == "seq"', "seq_kd_soft_has_both"),
        ("run.phase(m, task), current", "run.phase(1, task), current", "the_student_learns_the_current_task"),
        ("replay, teacher, before_step)", "replay, teacher)", "the_hook_reaches_every_update"),
    ],
}

# function -> the same in other words
RIGHT = {
    "data.encode_parts": """
def encode_parts(c, q, a, task_id, tokenizer, max_len, stopped=True, id=""):
    most = max_len - 2 - len(q)
    if most < 0 or (most == 0 and a):
        return None
    if len(a) > most:
        context, answer, stopped = [], a[:most], False
    else:
        context, answer = c[: most - len(a)], a
    row = [task_id] + context + q + [tokenizer.ans_id] + answer + [tokenizer.eos_id if stopped else IGNORE]
    labels, n = row[2:], len(context) + len(q)
    for t in range(n):
        labels[t] = IGNORE
    return Sample(row[1:-1], labels, row[:-1], row[1:], len(c) - len(context), len(a) - len(answer), id)
""",
    "data.plan_epoch": """
import numpy as np


def plan_epoch(n_current, n_replay, batch_size, updates, generator):
    old = torch.randperm(n_replay, generator=generator) + n_current
    batches = torch.randperm(n_current, generator=generator).split(batch_size)
    parts = np.array_split(old.numpy(), len(batches))
    return [list(map(int, x)) for pair in zip(batches, parts) for x in pair if len(x)]
""",
    "kd.nll": """
def nll(z, y):
    return torch.logsumexp(z, dim=1) - z.gather(1, y[:, None]).squeeze(1)
""",
    "kd.word_kd": """
def soften(z, t):
    return torch.softmax(z / t, dim=1)


def word_kd(z_student, z_teacher, t):
    p = soften(z_teacher, t)
    return -(t * t) * (p * torch.log_softmax(z_student / t, dim=1)).sum(1) + t * t * torch.special.xlogy(p, p).sum(1)
""",
    "kd.token_weights": """
def token_weights(batch, rule, ans_id, ans_weight=5.0, lm_lambda=0.25):
    def kind(group, i):
        return bool(group.lm[i]), bool(group.replay[i]) and rule == "added"

    raw = [[ans_weight if y == ans_id else 1.0 for y in group.labels.tolist()] for group in batch]
    total = {}
    for group, weights in zip(batch, raw):
        for i in group.soft.tolist():
            weights[i] = 1.0
        for i, w in enumerate(weights):
            total[kind(group, i)] = total.get(kind(group, i), 0) + w
    scale = {True: lm_lambda, False: 1}
    return [
        torch.tensor([w / total[kind(group, i)] * scale[bool(group.lm[i])] for i, w in enumerate(weights)])
        for group, weights in zip(batch, raw)
    ]
""",
    "lamol.pseudo_per_task": """
def pseudo_per_task(n, gamma, previous):
    if previous == 0:
        return 0
    return int(-(-(n * gamma) // 1)) // previous
""",
    "lamol.top_k_filter": """
def top_k_filter(logits, k):
    V = logits.shape[-1]
    if k < 1 or k >= V:
        return logits
    least = logits.sort(dim=-1).values[..., V - k, None]
    return torch.where(logits >= least, logits, torch.tensor(float("-inf")))
""",
    "lamol.why_rejected": """
def why_rejected(ids, tok):
    special = [i for i in ids if i in (tok.ans_id, tok.eos_id, tok.pad_id) or tok.is_task(i)]
    if len(special) != 3 or not tok.is_task(special[0]) or special[1:] != [tok.ans_id, tok.eos_id]:
        return "special tokens"
    if ids[0] != special[0] or ids[-1] != tok.eos_id:
        return "not from TASK to EOS"
    return "" if 1 < ids.index(tok.ans_id) < len(ids) - 2 else "an empty part"
""",
    "eval.summarise": """
import numpy as np


def summarise(method, order, rows):
    stages = sorted({row["stage"] for row in rows})
    R = {i: {row["task"]: row["score"] for row in rows if row["stage"] == i} for i in stages}
    n, out = stages[-1], dict.fromkeys(("backward_transfer", "forgetting", "forward_transfer"))
    if method == "single":
        average = np.mean([R[m + 1][t] for m, t in enumerate(order)])
    else:
        average = np.mean(list(R[n].values()))
    if n > 1 and method not in ("single", "multitask"):
        table = np.array([[R[i][t] for t in order] for i in stages])
        old = range(n - 1)
        out["backward_transfer"] = np.mean([table[n, j] - table[j + 1, j] for j in old])
        out["forgetting"] = np.mean((table[:n].max(axis=0) - table[n])[:-1])
        out["forward_transfer"] = np.mean([table[j, j] - table[0, j] for j in range(1, n)])
    return {"order": order, "method": method, "scores": R, "average": average, **out}
""",
    "train.lifelong": """
def lifelong(run, before_step=None, after_stage=None):
    student, seen = run.new_student(), []
    for m, task in run.stages(student):
        real = data = run.samples[task.name]
        pseudo, teacher = (), None
        if seen and run.args.method == "lamol":
            pseudo = replay_samples(run, student, list(seen), len(real), task=task, stage=m)
        if run.args.kd in ("word", "seq", "seqsoft"):
            teacher = kd.Teacher(get_teacher(run, task), run.dtype)
            if run.args.kd != "word":
                data = teacher_answers(run, teacher, task, m)
        soft = run.args.kd in ("word", "seqsoft")
        learn(run, student, run.phase(m, task), data, pseudo, teacher if soft else None, before_step=before_step)
        run.end_stage(student, m, task)
        seen.append(task)
""",
}
