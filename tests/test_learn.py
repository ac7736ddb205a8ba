"""An update: its losses, its optimizer, its schedule, its gradients. python -m pytest tests/test_learn.py"""

import copy

import pytest
import torch
from conftest import nano
from safetensors.torch import load_file
from whole_runs import run, weights, without_dropout_folder

import kd
import train
from data import IGNORE, plan_epoch
from lab.files import read_jsonl
from lab.run import Phase, Run
from lab.run import run as lab_run
from lab.run.options import Options, parse, resolve
from lab.run.pretrained import NANO
from lab.run.seeds import generator_for
from model import GPT, GPTConfig

# ---------------------------------------------------------------------- the schedule


def test_each_update_has_the_authors_rate_for_the_samples_seen_before_it(golden):
    compared = 0
    for case in golden("schedule")["cases"]:
        if case["decay_style"] != "linear":
            continue
        for seen, wanted in case["lr_after"]:
            lr = train.learning_rate(seen, case["n_samples"], case["epochs"], case["start_lr"], case["warmup_ratio"])
            assert lr == pytest.approx(wanted, rel=1e-12, abs=1e-20)
            compared += 1
    assert compared > 50
    for trace in golden("schedule")["step_traces"]:
        seen = 0
        for size, wanted in zip(trace["batch_sizes"], trace["lr_used"]):
            lr = train.learning_rate(seen, trace["n_samples"], trace["epochs"], trace["start_lr"], 0.005)
            assert lr == pytest.approx(wanted, rel=1e-12, abs=1e-20)
            seen += size


def test_the_batch_size_is_the_authors():
    assert [train.batch_size(n) for n in (1, 5999, 7500, 15000, 138000)] == [4, 4, 5, 10, 92]


def test_schedule_and_batch_size_count_replay_samples_too(lab, monkeypatch):
    counted = []
    monkeypatch.setattr(train, "batch_size", lambda n: counted.append(n) or 4)
    options = ["--kd", "none", "--replay", "real", "--log-every", "1", "--epochs", "1", "--batch-size", "0"]
    folder = run(lab, *options, "--lr", "0.001", "--warmup-ratio", "0")
    assert counted == [9, 8 + 4]  # γ = 0.5
    rates = [line["lr"] for line in read_jsonl(folder / "log.jsonl") if line["task"] == "sizes"]
    assert rates == pytest.approx([0.001 * (12 - seen) / 12 for seen in (0, 4, 8)])


# ---------------------------------------------------------------------- AdamW


class AuthorsAdamW:
    """AdamW as the authors' code has it: ε before the bias correction of the second moment, decay after the step."""

    def __init__(self, params, decay, epsilon, b1=0.9, b2=0.999):
        self.params, self.decay, self.epsilon = params, decay, epsilon
        self.b1, self.b2, self.t = b1, b2, 0
        self.m = [torch.zeros_like(p) for p in params]
        self.v = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step(self, lr, grads):
        self.t += 1
        size = lr * (1 - self.b2**self.t) ** 0.5 / (1 - self.b1**self.t)
        for p, m, v, decay, grad in zip(self.params, self.m, self.v, self.decay, grads):
            m.mul_(self.b1).add_(grad, alpha=1 - self.b1)
            v.mul_(self.b2).addcmul_(grad, grad, value=1 - self.b2)
            p.sub_(size * m / (v.sqrt() + self.epsilon))
            p.sub_(lr * decay * p)


@pytest.mark.parametrize("corrected", [True, False])
def test_adamw_adds_its_epsilon_before_the_bias_correction(corrected):
    """120 updates are the authors' to 1e-6. With torch's own rule for ε they are not."""
    torch.manual_seed(0)
    model = torch.nn.Linear(20, 30)  # a matrix and a vector
    args = resolve(Options(order="woz"))
    optimizer = train.build_optimizer(model, args)
    params = [p.detach().double().clone() for p in (model.weight, model.bias)]
    authors = AuthorsAdamW(params, [args.weight_decay, 0.0], args.adam_epsilon)
    for t in range(1, 121):
        lr = train.learning_rate(4 * t, 500, 1, 1e-3, 0.1)
        for p in model.parameters():
            p.grad = 1e-4 * torch.randn_like(p) + 5e-5
        train.set_rates(optimizer, lr, args.adam_epsilon, t if corrected else 10**9)
        authors.step(lr, [p.grad.double() for p in (model.weight, model.bias)])
        optimizer.step()
    away = max(float((p.detach() - q).abs().max()) for p, q in zip((model.weight, model.bias), params))
    assert away < 1e-6 if corrected else away > 1e-3


def test_weight_decay_spares_biases_and_layer_norms():
    model = GPT(GPTConfig(vocab_size=9, n_embd=8, n_layer=1, n_head=1))
    decayed, spared = train.build_optimizer(model, resolve(Options(order="woz"))).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.01 and spared["weight_decay"] == 0 and decayed["lr"] == 6.25e-5
    assert all(names[id(p)].endswith("bias") or "ln_" in names[id(p)] for p in spared["params"])
    assert not any(names[id(p)].endswith("bias") or "ln_" in names[id(p)] for p in decayed["params"])


def test_each_task_has_an_adamw_of_its_own_and_epsilon_follows_its_steps(lab, monkeypatch):
    made, asked = [], []
    build, rates = train.build_optimizer, train.set_rates
    monkeypatch.setattr(train, "build_optimizer", lambda *a: made.append(build(*a)) or made[-1])
    monkeypatch.setattr(train, "set_rates", lambda o, lr, e, t: (asked.append((len(made), t)), rates(o, lr, e, t)))
    run(lab, "--kd", "none", "--batch-size", "3", "--gamma", "0")
    assert [type(optimizer) for optimizer in made] == [torch.optim.AdamW] * 2
    assert asked == [(task, t) for task in (1, 2) for t in range(1, 7)]


def test_gradients_are_clipped_after_they_are_unscaled(lab, tmp_path, monkeypatch):
    """With an ε far above the gradients, AdamW's updates are as large as what clipping leaves of them."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: scaler(*a, **k, init_scale=2.0**10))
    before = load_file(NANO / "model.safetensors")

    def moved(dtype, norm):
        options = ["--method", "finetune", "--weight-decay", "0", "--adam-epsilon", "1000", "--lr", "1"]
        options += ["--dtype", dtype, "--max-grad-norm", norm, "--runs-dir", str(tmp_path / dtype)]
        student = weights(run(lab, *options) / "model")
        return sum(float((student[k] - p.float()).pow(2).sum()) for k, p in before.items() if "wte" not in k) ** 0.5

    free, clipped = moved("float32", "1000"), moved("float32", "0.01")
    assert clipped < free / 10
    assert moved("float16", "1000") == pytest.approx(free, rel=0.05)
    assert moved("float16", "0.01") == pytest.approx(clipped, rel=0.05)


# ---------------------------------------------------------------------- the losses


def without_dropout(model):
    for module in model.modules():
        module.dropout = 0.0
    model.config.dropout = 0.0
    return model


@pytest.mark.parametrize("soft", [True, False], ids=["word", "none"])
def test_fifty_updates_have_the_losses_of_the_plain_way(tmp_path, soft):
    """Padded rows, all logits, losses as the paper writes them, AdamW as the authors do. The same to 1e-6, in double
    precision, in which 50 updates add up no rounding."""
    options = ["--order", "toy.woz,toy.ag", "--log-every", "1", "--epochs", "5", "--limit", "30", "--batch-size", "4"]
    options += ["--weight-decay", "0"]  # torch's comes before the step, the authors' after it: 1e-5 of a step apart
    options += ["--kd", "word" if soft else "none", "--runs-dir", str(tmp_path), "--device", "cpu"]
    student, taught_by = without_dropout(nano()).double(), nano(noise=0.02).double()
    plain = copy.deepcopy(student)
    with Run(parse(options)) as r:
        args, current, replay = r.args, r.samples["toy.woz"], r.samples["toy.ag"][:10]
        teacher = kd.Teacher(copy.deepcopy(taught_by), r.dtype) if soft else None
        train.learn(r, student, Phase("student", 1, "toy.woz", args.epochs), current, replay, teacher)
        losses = [line["loss"] for line in read_jsonl(r.dir / "log.jsonl")]

    samples, wanted, seen = current + replay, [], 0
    params = list(plain.parameters())
    optimizer = AuthorsAdamW(params, [0.0] * len(params), args.adam_epsilon)
    for epoch in range(1, args.epochs + 1):
        order = generator_for(args.seed, 1, "toy.woz", "student batches", epoch)
        for indices in plan_epoch(len(current), len(replay), args.batch_size, "shuffled", order):
            loss = plain_loss(plain, taught_by.eval(), samples, indices, len(current), soft, r.tokenizer, args)
            plain.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            lr = train.learning_rate(seen, len(samples), args.epochs, args.lr, args.warmup_ratio)
            optimizer.step(lr, [p.grad for p in params])
            wanted.append(loss.item())
            seen += len(indices)
    assert len(wanted) == 50 and wanted[-1] < 0.8 * wanted[0]
    assert losses == pytest.approx(wanted, rel=1e-6)


def plain_loss(model, teacher, samples, indices, n_current, soft, tok, args):
    """Section 2.3 written down: a row at a time, all logits of it, KD as Σ p log p/q."""
    total = 0.0
    for kind, weight in (("qa", 1.0), ("lm", args.lm_lambda)):
        sums, counts = [0.0, 0.0], [0.0, 0.0]  # of current and of replay samples
        for i in indices:
            ids, labels = (torch.tensor(getattr(samples[i], f"{kind}_{x}")) for x in ("ids", "labels"))
            at = labels != IGNORE
            padded = torch.cat([ids, torch.full((5,), tok.pad_id)])[None]
            z, y = model(padded)[0, : len(ids)][at], labels[at]
            if soft and i < n_current:
                with torch.no_grad():
                    p = torch.softmax(teacher(padded)[0, : len(ids)][at] / 2, -1)
                q = torch.softmax(z / 2, -1)
                loss, w = 4 * (p * (p.log() - q.log())).sum(-1), torch.ones(len(y))
            else:
                loss, w = -z.log_softmax(-1)[range(len(y)), y], 1.0 + 4.0 * (y == tok.ans_id)
            sums[i >= n_current] += (w * loss).sum()
            counts[i >= n_current] += w.sum()
        if not soft:  # joint
            sums, counts = [sum(sums)], [sum(counts)]
        total = total + weight * sum(s / n for s, n in zip(sums, counts) if n)
    return total


def test_an_update_is_made_in_training_mode_with_the_options_that_were_given(lab, monkeypatch):
    asked = {"loss": set(), "weights": set(), "top_k": set()}
    group_loss, token_weights, sampler = kd.group_loss, kd.token_weights, train.lamol.top_k_sampler

    def loss(model, teacher, group, w, temperature, scale):
        asked["loss"].add((model.training, teacher.model.training if teacher else None, temperature))
        return group_loss(model, teacher, group, w, temperature, scale)

    def weigh(batch, rule, ans_id, ans_weight, lm_lambda):
        asked["weights"].add((rule, ans_weight, lm_lambda))
        return token_weights(batch, rule, ans_id, ans_weight, lm_lambda)

    monkeypatch.setattr(kd, "group_loss", loss)
    monkeypatch.setattr(kd, "token_weights", weigh)
    monkeypatch.setattr(train.lamol, "top_k_sampler", lambda k, *a: asked["top_k"].add(k) or sampler(k, *a))
    run(lab, "--kd", "word", "--temperature", "3", "--ans-weight", "7", "--lm-lambda", "0.5", "--top-k", "9")
    assert asked["loss"] == {(True, None, 3.0), (True, False, 3.0)}  # a teacher learns without one
    assert asked["weights"] == {("added", 7.0, 0.5)} and asked["top_k"] == {9}


def test_the_temperature_is_annealed_by_equal_steps_over_the_epochs_of_a_task():
    assert [train.annealed(4, 1, epoch, 4) for epoch in (1, 2, 3, 4)] == [4, 3, 2, 1]
    assert [train.annealed(2, 2, epoch, 9) for epoch in range(1, 10)] == [2] * 9
    assert train.annealed(4, 1, 1, 1) == 4


def test_each_epoch_of_each_task_is_distilled_at_its_own_temperature(lab):
    folder = run(lab, "--kd", "word", "--epochs", "3", "--temperature", "4", "--last-temperature", "2")
    lines = [line for line in read_jsonl(folder / "log.jsonl") if line["phase"] == "student"]
    assert {(line["task"], line["epoch"], line["temperature"]) for line in lines} == {
        (task, epoch, temperature) for task in ("colors", "sizes") for epoch, temperature in ((1, 4), (2, 3), (3, 2))
    }


def test_a_micro_batch_bounds_the_examples_at_once_and_changes_rounding_alone(lab, tmp_path, monkeypatch):
    losses, rows, group_loss = {}, {}, kd.group_loss
    model = without_dropout_folder(tmp_path)
    for micro in ("0", "1", "3"):
        counts = rows[micro] = []
        monkeypatch.setattr(kd, "group_loss", lambda *a, n=counts: (n.append(len(a[2].rows)), group_loss(*a))[1])
        more = ["--micro-batch", micro, "--runs-dir", str(tmp_path / micro)]
        folder = run(lab, "--model", model, "--kd", "none", "--log-every", "1", "--epochs", "1", "--lr", "1e-4", *more)
        losses[micro] = [line["loss"] for line in read_jsonl(folder / "log.jsonl")]
    for micro in ("1", "3"):
        assert losses[micro] == pytest.approx(losses["0"], rel=1e-5)
    assert max(rows["0"]) > 6 == max(rows["3"]) and max(rows["1"]) == 2  # a QA and an LM row of each


def test_the_teachers_memory_changes_rounding_alone_and_is_bounded(lab, monkeypatch):
    teachers, init = [], kd.Teacher.__init__
    monkeypatch.setattr(kd.Teacher, "__init__", lambda self, *a: (teachers.append(self), init(self, *a))[1])
    losses, remembered, devices = {}, {}, []
    monkeypatch.setattr(lab_run, "cache_bytes", lambda device: devices.append(device.type) or 40000)
    for cache in (10**9, 40000, 0, None):
        teachers.clear()
        given = [] if cache is None else ["--teacher-cache", str(cache)]
        folder = run(lab, "--log-every", "1", "--runs-dir", f"{lab[5]}{cache}", *given)
        losses[cache] = [x["loss"] for x in read_jsonl(folder / "log.jsonl") if x["phase"] == "student"]
        remembered[cache] = [sum(states.nbytes for states in t.cache.values()) for t in teachers]
    for cache in (40000, 0):
        assert losses[cache] == pytest.approx(losses[10**9], rel=1e-4)
    assert all(0 < n <= 40000 for n in remembered[40000]) and remembered[0] == [0, 0]
    assert min(remembered[10**9]) > 40000
    # the default is asked for in each stage, and a number wins
    assert (losses[None], remembered[None], devices) == (losses[40000], remembered[40000], ["cpu", "cpu"])
