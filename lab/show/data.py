"""python data.py: one example through text, ids and labels (Figure 2), then a few samples as a batch."""

import torch

from data import IGNORE, encode_example, make_batch, plan_epoch
from lab.errors import Parser, command, replace_unprintable
from lab.run.pretrained import nano_tokenizer
from lab.tasks import load_task


@command()
def main(argv=None) -> None:
    """The command line: there is nothing to choose."""
    Parser("python data.py", description=__doc__).parse_args(argv)
    show()


def show() -> None:
    replace_unprintable()
    tok, task = nano_tokenizer(), load_task("toy.woz", "", "")
    task_id, example = tok.task_id(task.name), task.train[1]
    sample = encode_example(example, task_id, tok, max_len=256)
    names = {tok.ans_id: "ANS", tok.eos_id: "EOS", task_id: "TASK", IGNORE: "-"}

    def column(ids):
        return [names.get(i) or repr(tok.decode([i])) for i in ids]

    print(f"context   {example.context}\nquestion  {example.question}\nanswer    {example.answer}\n")
    print(f"{'':16}LM row: learn to write examples{'':9}QA row: learn to answer (one position less)")
    print(f"{'position in LM':<16}{'input':<20}{'label':<20}{'input':<20}label")
    lm = [column(sample.lm_ids), column(sample.lm_labels)]
    qa = [["", *column(sample.qa_ids)], ["", *column(sample.qa_labels)]]
    for t, cells in enumerate(zip(*lm, *qa)):
        print(f"{t:<16}" + "".join(f"{cell:<20}" for cell in cells).rstrip())

    samples = [encode_example(e, task_id, tok, max_len=256) for e in task.train[:6]]
    plan = plan_epoch(4, 2, 3, "shuffled", torch.Generator().manual_seed(0))
    print(f"\n4 current samples and 2 replay samples (4, 5) in batches of 3: {plan}")
    for group in make_batch(samples, plan[0], n_current=4, soft=True):
        tokens, padded = group.ids.numel(), group.packing.padded_tokens()
        print(f"  {len(group.rows)} rows, packed: {tokens} tokens ({padded} in attention), ", end="")
        print(f"{len(group.labels)} supervised: {len(group.soft)} by the teacher's distribution, ", end="")
        print(f"{len(group.hard)} by the labels")
