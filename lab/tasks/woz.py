"""WOZ 2.0 as decaNLP casts it: the system's acts and the user's words -> the turn's change of the belief state."""

from lab.tasks.fetch import raw_file
from lab.tasks.reading import SPLITS, good_rows, json_items, one_line, subsample, text_of


def reader(task, folder):
    files = {split: raw_file(task, folder, f"woz_{split}_en.json") for split in SPLITS}

    def read(sizes):
        rows = {}
        for split, path in files.items():
            dialogues = enumerate(json_items(path, text_of(path)))
            items = ((line, (d, dialogue)) for d, (line, dialogue) in dialogues)
            rows[split] = subsample(good_rows(path, items, dialogue_rows), sizes[split])
        return rows

    return list(files.values()), read


def dialogue_rows(line, item):
    """One row a turn; `meta.turn` is `<language>_<dialogue>_<turn>`, which the joint goal is accumulated over."""
    d, dialogue = item
    rows, before = [], []  # before: the informed slots after the turn before
    for t, turn in enumerate(dialogue["dialogue"]):
        row, before = turn_row(turn, before)
        rows.append({"id": f"en_{d}_{t}", **row, "meta": {"turn": f"en_{d}_{t}"}})
    return rows


def turn_row(turn, before):
    """`food, area: north -- user's words` and `slot: value, slot: value; request, request` (or None)."""
    acts = ", ".join(act if isinstance(act, str) else ": ".join(act) for act in turn["system_acts"])
    context = one_line((acts + " -- " if acts else "") + turn["transcript"])
    state = [(item["act"], slot, value) for item in turn["belief_state"] for slot, value in item["slots"]]
    informed = [(slot, value) for act, slot, value in state if act == "inform"]
    new = ", ".join(": ".join(pair) for pair in informed if pair not in before)
    requests = ", ".join(value for act, _, value in state if act != "inform")
    answer = f"{new}; {requests}".strip() if new or requests else "None"
    return {"context": context, "question": "What is the change in state?", "answer": answer}, informed
