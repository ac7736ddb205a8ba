"""Toy tasks: small grammars that make examples of the paper's kinds of task, so that everything runs without downloads.

    toy.woz   a dialogue turn -> the change of the dialogue's state        joint goal EM
    toy.sql   a table's columns and a question -> SQL                      logical-form EM
    toy.cnn   a news story -> its highlights                               ROUGE
    toy.e2e   a meaning representation -> a sentence                       ROUGE
    toy.ag    a headline -> its section                                    EM

A grammar draws a combination (what is meant), then words for it. A hash puts each combination into one of three splits.
So test examples are combinations that training never shows, and the third split is left for pretraining (lab/nano.py).

    python -m lab.tasks.toy     shows two examples a task
"""

import signal
import zlib
from random import Random

SIZES = {"train": 300, "test": 100}
SPLITS = {"test": range(0, 2), "train": range(2, 5), "pretraining": range(5, 10)}  # tenths of all combinations

FOODS = "thai indian italian french chinese korean turkish greek spanish cuban welsh polish".split()
PRICES = "cheap moderate expensive".split()
AREAS = "north south east west centre".split()
DAYS = "monday tuesday friday sunday".split()
REQUESTS = "phone address postcode menu".split()
NAMES = "anna bruno clara david emma felix greta hugo irene jonas karen louis maria nils olga peter".split()
TEAMS = "lions tigers bears hawks sharks wolves eagles bulls".split()
CITIES = "oslo rome paris madrid vienna berlin lisbon dublin prague athens".split()
COLUMNS = {
    "player": NAMES,
    "team": TEAMS,
    "city": CITIES,
    "coach": NAMES,
    "year": [str(n) for n in range(1990, 2010)],
    "points": [str(n) for n in range(10, 40)],
    "rank": [str(n) for n in range(1, 10)],
    "venue": ["park", "hall", "arena", "field", "garden"],
}
AGGREGATES = {"": "what is the", "max": "what is the highest", "min": "what is the lowest", "count": "how many"}
OPERATORS = {"=": "is", ">": "is above", "<": "is below"}
NUMBERS = ("year", "points", "rank")
PLACES = "bridge harbour school market station museum factory library castle theatre".split()
EVENTS = "fire flood storm robbery strike crash party concert election trial".split()
AFTER = "closed empty damaged safe open crowded quiet dark".split()
FILLERS = (
    "the weather was {} that day .",
    "people in {} had waited for hours .",
    "a reporter from {} took some pictures .",
    "it was the talk of {} .",
)
WEATHER = "warm cold wet dry windy sunny".split()
INNS = "mill anchor crown rose swan phoenix lantern orchard".split()
FAMILY = {
    "yes": (". families are welcome", ". you can bring children"),
    "no": (". it is not for children", ". only adults are welcome"),
}
KINDS = "pub restaurant cafe bar".split()
NEAR = "river castle station park bakery".split()
TOPICS = {
    "world": "minister army treaty border embassy president rebels parliament summit refugees".split(),
    "sports": "goal coach season match striker stadium medal race champion league".split(),
    "business": "profit shares bank market merger investors prices trade sales company".split(),
    "science": "planet robot software telescope cells fossil laser gene satellite computer".split(),
}
HEADLINES = (
    "{} and {} after {} news",
    "new {} as {} meets {}",
    "{} , {} and a surprise {}",
    "why the {} needs {} and {}",
)


def with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeio' else 'a'} {word}"


# ---------------------------------------------------------------------- grammars
# Each gives a list of (combination, context, question, answer, meta).


def woz(r: Random):
    """Two turns of a dialogue: what the user's words change, `slot: value, slot: value; request`."""
    state = {"food": r.choice(FOODS), "price": r.choice(PRICES), "area": r.choice(AREAS), "day": r.choice(DAYS)}
    words = {
        "food": r.choice(("{} food", "a table for {} food", "something {}")),
        "price": r.choice(("some {} place", "something {}", "{} prices")),
        "area": r.choice(("in the {}", "the {} part of town", "somewhere {}")),
        "day": r.choice(("on {}", "for {}", "this {}")),
    }
    said = {slot: words[slot].format(value) for slot, value in state.items()}
    slots = r.sample(sorted(state), 4)
    request = r.choice(["", *REQUESTS])
    first, second = slots[:2], slots[2 : r.choice((3, 4, 4))]
    opening = r.choice(("i want {}", "hello , i need {} please", "can you find me {} ?"))
    reply = r.choice(("{} please", "{} would be nice", "i would like {}"))
    asked = f" . what is the {request} ?" if request else ""
    contexts = (
        opening.format(" , ".join(said[slot] for slot in first)),
        # the system's acts come first, as in WOZ 2.0
        f"{', '.join(second)} -- {reply.format(' , '.join(said[slot] for slot in second))}{asked}",
    )
    rows = []
    for context, changed, ask in zip(contexts, (first, second), ("", request)):
        answer = f"{', '.join(f'{slot}: {state[slot]}' for slot in sorted(changed))}; {ask}".strip()
        rows.append((answer, context, "what is the change in state?", answer, {}))
    return rows


def sql(r: Random):
    """A table's columns and a question -> `select ... from table where ...`, and its logical form."""
    header = r.sample(sorted(COLUMNS), 4)
    selected, *others = r.sample(header, 3)
    aggregate = r.choice(("", "", "max", "min")) if selected in NUMBERS else r.choice(("", "", "", "count"))
    question = f"{AGGREGATES[aggregate]} {selected}"
    conditions, form = [], []
    for column in others[: r.choice((1, 2))]:
        value = r.choice(COLUMNS[column])
        operator = r.choice("=><") if column in NUMBERS else "="
        word = "and" if conditions else r.choice(("when", "where", "if"))
        question += f" {word} {column} {OPERATORS[operator]} {value}"
        conditions.append(f"{column} {operator} {value}")
        form.append([header.index(column), list(OPERATORS).index(operator), value])
    context = f"the table has columns {', '.join(header)} -- {question} ?"
    answer = f"select {aggregate + ' ' if aggregate else ''}{selected} from table where {' and '.join(conditions)}"
    form = {"sel": header.index(selected), "agg": list(AGGREGATES).index(aggregate), "conds": form}
    meta = {"sql": form, "header": header}
    return [(answer, context, "what is the translation from english to sql?", answer, meta)]


def cnn(r: Random):
    """A story of three or four sentences -> two highlights: what happened, and how it ended."""
    event, place, city = r.choice(EVENTS), r.choice(PLACES), r.choice(CITIES)
    day, who, after = r.choice(DAYS), r.choice(NAMES), r.choice(AFTER)
    lead = (
        f"there was {with_article(event)} at the {place} in {city} on {day} .",
        f"on {day} {with_article(event)} hit the {place} of {city} .",
    )
    end = (f"{who} from the police said it is {after} .", f"it is {after} now , says {who} of the city council .")
    fillers = [s.format(r.choice(WEATHER if "weather" in s else CITIES)) for s in r.sample(FILLERS, r.choice((1, 2)))]
    rest = [r.choice(end), *fillers]
    r.shuffle(rest)
    answer = f"{event} at {city} {place} on {day} . {who} : {place} {after} ."
    return [(answer, " ".join([r.choice(lead), *rest]), "what is the summary?", answer, {})]


def e2e(r: Random):
    """A meaning representation, `slot[value], ...` -> one of up to 32 wordings that say all of it."""
    meaning = {"name": r.choice(INNS), "kind": r.choice(KINDS), "food": r.choice(FOODS)}
    more = {
        "price": r.choice(PRICES),
        "area": r.choice(AREAS),
        "near": r.choice(NEAR),
        "family": r.choice(("yes", "no")),
    }
    meaning |= {slot: more[slot] for slot in r.sample(sorted(more), r.choice((2, 3)))}
    slots = ["name", *r.sample(sorted(set(meaning) - {"name"}), len(meaning) - 1)]
    context = ", ".join(f"{slot}[{meaning[slot]}]" for slot in slots)
    wordings = {
        "kind": ("the {name} is {kind}", "there is {kind} called the {name}"),
        "food": ("with {food} food", "that serves {food} dishes"),
        "area": ("in the {area}", "in the {area} of town"),
        "near": ("by the {near}", "close to the {near}"),
        "family": FAMILY.get(meaning.get("family")),
    }
    phrases = [r.choice(wordings[slot]) for slot in wordings if slot in meaning]
    kind = with_article(f"{meaning.get('price', '')} {meaning['kind']}".strip())
    answer = f"{' '.join(phrases)} .".format(**meaning | {"kind": kind})
    return [(sorted(meaning.items()), context, "what is the sentence?", answer, {})]


def ag(r: Random):
    """A headline of three telling words; its section is the one that two of them belong to."""
    label, other = r.sample(sorted(TOPICS), 2)
    words = [*r.sample(TOPICS[label], 2), r.choice(TOPICS[other])]
    r.shuffle(words)
    return [(sorted(words), r.choice(HEADLINES).format(*words), "which section is it?", label, {})]


# ---------------------------------------------------------------------- rows

GRAMMARS = {"toy.woz": woz, "toy.sql": sql, "toy.cnn": cnn, "toy.e2e": e2e, "toy.ag": ag}


def toy_rows(task: str, split: str, n: int) -> list[dict]:
    """The first n rows of a toy task's split (train, test, pretraining), always the same ones.

    Rows are dicts as in lab/tasks/reading.py."""
    r = Random(f"{task} {split}")
    rows, drawn = [], 0
    while len(rows) < n:
        found = GRAMMARS[task](r)
        if all(zlib.crc32(repr(combination).encode()) % 10 in SPLITS[split] for combination, *_ in found):
            for t, (_, context, question, answer, meta) in enumerate(found):
                if task == "toy.woz":
                    meta = {"turn": f"toy_{drawn}_{t}"}  # language, dialogue, turn: see lab/tasks/woz.py
                row = {"id": f"{split}-{drawn}-{t}", "context": context, "question": question, "answer": answer}
                rows.append(row | {"meta": meta})
            drawn += 1
    return rows[:n]


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # of `| head`: end without a traceback
    for name in GRAMMARS:
        for row in toy_rows(name, "train", 2):
            print(f"{name:<10} {row['context']}\n{'':<10} {row['question']}\n{'':<10} {row['answer']}\n")
