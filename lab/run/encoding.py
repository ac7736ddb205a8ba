"""A task's training examples as ids, and what of them does not fit."""

from dataclasses import asdict

from data import Sample, Task, Tokenizer, answer_budget, encode_example
from lab.errors import DataError
from lab.files import key_of


def encode_task(task: Task, tokenizer: Tokenizer, max_len: int) -> list[Sample]:
    """All training examples that fit. Prints how many are cut or rejected, of training and of test.

    Raises DataError if no example fits."""
    samples = [encode_example(example, tokenizer.task_id(task.name), tokenizer, max_len) for example in task.train]
    kept = [sample for sample in samples if sample is not None]
    if not kept:
        raise DataError(f"task {task.name}: no training example fits into {max_len} tokens")
    counts = {
        "rejected (question and answer too long)": len(samples) - len(kept),
        "answers cut": sum(sample.answer_cut > 0 for sample in kept),
        "contexts cut": sum(sample.context_cut > 0 for sample in kept),
    }
    if any(counts.values()):
        found = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
        print(f"{task.name}: of {len(samples)} training examples, at {max_len} tokens: {found}")
    budget = answer_budget(task, tokenizer, max_len)
    for split, examples in (("training", task.train), ("test", task.test)):
        if cut := sum(len(tokenizer.encode(e.answer)) + 1 > budget for e in examples):
            print(f"{task.name}: {cut} of {len(examples)} {split} answers are too long to be generated ({budget})")
    lengths = (len(tokenizer.encode(e.context)) + len(tokenizer.encode(e.question)) + 1 for e in task.test)
    if cut := sum(n + budget > max_len for n in lengths):
        print(f"{task.name}: {cut} of {len(task.test)} test prompts cut, to leave {budget} tokens for the answer")
    return kept


def hash_of_examples(task: Task) -> str:
    """A short hash of a task's examples, of training and of test."""
    return key_of([asdict(example) for example in task.train + task.test])
