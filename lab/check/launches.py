"""What a GPU would wait for, counted without one: groups, launched operations, decoding steps.

Operations are counted as torch dispatches them on a CPU, for a model of 12 layers that is narrow and has few words,
since their number does not depend on the widths. Views and fresh memory launch nothing, and are left out. A fused
operation counts once; where a GPU has one for all parameters (clipping), a CPU may have one for each.
"""

import contextlib
import io
import re
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kd
from data import IGNORE, answer_budget, make_batch, plan_epoch
from lab.errors import RunError
from lab.fast import chunked, decode
from lab.fast.cache import KVCache
from lab.fast.compiled import compile_model, compiled_step
from lab.fast.packing import Layout
from lab.run.encoding import encode_task
from lab.run.options import Options
from lab.run.pretrained import SIZES, gpt2_tokenizer
from lab.tasks import TASKS, load_task
from lamol import pseudo_per_task
from model import GPT, GPTConfig
from train import batch_size, build_optimizer

NARROW = GPTConfig(vocab_size=512, n_embd=16, n_head=2)
GAMMA, MAX_LEN = Options().gamma, 1024


class Launches(TorchDispatchMode):
    """Counts the operations of its block in `n`."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        arguments = function._schema.arguments
        is_view = any(a.alias_info is not None and not a.alias_info.is_write for a in arguments)
        self.n += not is_view and "empty" not in function.name()
        return function(*args, **(kwargs or {}))


def load(name: str, case: dict, limit: int = 0):
    """A task and its samples. In its place AG News for a classification task whose data are not there."""
    tokenizer = gpt2_tokenizer()
    with contextlib.redirect_stdout(io.StringIO()):
        task = load_task(case["stand_in"].get(name, name), case["data_dir"], case["cache_dir"], limit)
        tokenizer.add_task(task.name)
        return task, encode_task(task, tokenizer, MAX_LEN)


# ---------------------------------------------------------------------- an update


def update_launches(case: dict) -> dict:
    """Per update of Word-KD as `train.learn` makes it on a GPU, with γ replay samples of an earlier task, the teacher's
    states being remembered: groups, and launches forward, backward, and of clipping and optimizer."""
    torch.manual_seed(0)
    chunked.CHUNK_BYTES["cpu"] = chunked.CHUNK_BYTES["cuda"] * NARROW.vocab_size // 50304  # as many tokens
    chunked.CHUNK_TOKENS.clear()
    size = batch_size(int((1 + GAMMA) * TASKS[case["task"]].sizes[0]))
    n = size * case["updates"]
    current = load(case["task"], case, n)[1]
    replay = load(case["earlier"], case, int(GAMMA * n))[1]
    samples = [*current, *replay]
    for sample in samples:
        for ids in (sample.qa_ids, sample.qa_labels, sample.lm_ids, sample.lm_labels):
            ids[:] = [i if i == IGNORE else i % NARROW.vocab_size for i in ids]
    model, teacher = GPT(NARROW), kd.Teacher(GPT(NARROW))
    teacher.remember(current, True, 2**31)
    optimizer = build_optimizer(model, Options(lr=1e-5))
    counts = dict.fromkeys(("groups", "forward", "backward", "optimizer"), 0)
    plan = plan_epoch(len(current), len(replay), size, "shuffled", torch.Generator().manual_seed(0))
    for indices in plan[: case["updates"]]:
        batch = make_batch(samples, indices, len(current), soft=True, layout=Layout("cuda"))
        weights = kd.token_weights(batch, "added", ans_id=NARROW.vocab_size)  # of which there is none
        for group, w in zip(batch, weights):
            if len(group.soft):
                teacher.logits(group)  # remembered from now on
            with Launches() as forward:
                loss, _ = kd.group_loss(model, teacher, group, w, 2.0)
            with Launches() as backward:
                loss.backward()
            counts["forward"] += forward.n
            counts["backward"] += backward.n
        with Launches() as rest:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        counts["optimizer"] += rest.n
        counts["groups"] += len(batch)
    done = min(case["updates"], len(plan))
    return {"examples": size} | {name: round(value / done, 2) for name, value in counts.items()}


# ---------------------------------------------------------------------- decoding


class SizeOnly(KVCache):
    """A cache that counts steps, has the size that the 124M model's would have in bfloat16, and holds nothing."""

    steps = 0

    def __init__(self, model, rows, columns):
        self.kv, self.length = [torch.zeros(rows, 2, 1, columns, 1, device="meta")], torch.zeros(rows)

    @classmethod
    def column_bytes(cls, model) -> int:
        return 2 * SIZES["gpt2"].n_layer * SIZES["gpt2"].n_embd * 2

    def prefill(self, model, rows, prompts):
        return torch.zeros(len(rows), model.config.n_embd)

    def step(self, model, tokens, used):
        SizeOnly.steps += 1
        return torch.zeros(len(tokens), model.config.n_embd)

    def keep(self, rows, more=0, columns=0):
        self.__init__(None, len(rows) + more, columns or self.columns)


def step_launches(case: dict) -> dict:
    """Launches of a decoding step."""
    torch.manual_seed(0)
    return {"step": launches_of_a_step(GPT(NARROW))}


def launches_of_a_step(model) -> float:
    """Those of 20 steps with 8 rows, less those of 10."""
    found = []
    for steps in (10, 20):
        with Launches() as launches:
            generate(model, steps)
        found.append(launches.n)
    return (found[1] - found[0]) / 10


def generate(model, steps: int) -> list[list[int]]:
    return decode.decode(model, [[1, 2, 3]] * 8, [steps] * 8, -1, lambda logits, rows, t: logits.argmax(dim=-1))


def compiled_launches(case: dict) -> dict:
    """Launches of a decoding step with --compile: calls in the code that torch.compile makes of it for a CPU, and what
    is left to do outside. Raises RunError if its tokens are other ones."""
    from torch._inductor.utils import run_and_get_code  # large: not for the measurements of memory

    torch.manual_seed(0)
    model = GPT(NARROW)
    wanted = generate(model, 10)
    compile_model(model)
    found, codes = run_and_get_code(generate, model, 10)
    if found != wanted:
        raise RunError("a compiled model generates other tokens")
    call = re.compile(r"^ +(?:\w+ = )?(?:cpp_fused_\w+|extern_kernels\.\w+|torch\.ops\.[\w.]+)\(", re.MULTILINE)
    inside = max(len(call.findall(code.split("def call(")[1])) for code in codes)  # others are of a block
    states = torch.zeros(8, NARROW.n_embd)
    with patch.object(torch, "compile", lambda function: lambda *arguments: states):
        model.read_tokens = compiled_step()
    return {"step": inside + launches_of_a_step(model)}


def decoding_steps(case: dict) -> dict:
    """The decoding steps of a run with the tasks of an order: scores, pseudo-data, and the teachers' answers of Seq-KD.

    Every row ends where the real one does. Where there are fewer examples than in Table 1, they count several times."""
    tokenizer, tasks = gpt2_tokenizer(), {name: load(name, case) for name in case["order"].split(",")}

    def steps(prompts, limits, ends) -> int:
        ends = torch.tensor(ends)

        def pick(logits, rows, t):
            return (t + 1 >= ends[rows]).long()  # 1 stops

        SizeOnly.steps = 0
        of_gpu = {name: {"cpu": getattr(decode, name)["cuda"]} for name in ("STEPS", "MULTIPLE")}
        with patch.multiple(decode, KVCache=SizeOnly, **of_gpu):
            decode.decode(GPT(NARROW), [[0] * n for n in prompts], limits, 1, pick)
        return SizeOnly.steps

    def answers(name, split) -> int:
        task, _ = tasks[name]
        budget, n = answer_budget(task, tokenizer, MAX_LEN), TASKS[name].sizes[split == "test"]
        examples = getattr(task, split)
        lengths = [
            (len(tokenizer.encode(e.context)) + len(tokenizer.encode(e.question)) + 1, len(tokenizer.encode(e.answer)))
            for e in examples[:n]
        ]
        lengths = (lengths * (n // len(lengths) + 1))[:n]
        prompts = [min(prompt, MAX_LEN - budget) for prompt, _ in lengths]
        return steps(prompts, [budget] * n, [min(answer + 1, budget) for _, answer in lengths])

    def pseudo_data(name, n) -> int:
        rows = [len(sample.lm_ids) for sample in tasks[name][1]]
        return steps([1] * n, [MAX_LEN] * n, (rows * (n // len(rows) + 1))[:n])

    scored = sum(answers(name, "test") for name in tasks)
    generated = 0
    for m, name in enumerate(tasks):
        n = pseudo_per_task(TASKS[name].sizes[0], GAMMA, m)
        generated += sum(pseudo_data(old, n) for old in list(tasks)[:m])
    found = {"scores": scored * (len(tasks) + 2), "pseudo-data": generated}  # before, after each stage, of the teachers
    found["teachers' answers"] = sum(answers(name, "train") for name in tasks)
    return found
