"""SQL as WikiSQL's logical form, read by the rule of the authors' code, misspelt columns and all. The metric that needs
it is `eval.logical_form_scores`."""

import re

AGGREGATES = ("", "max", "min", "count", "sum", "avg")
OPERATORS = ("=", ">", "<", "op")  # in WikiSQL's order; no query uses the last one


def common_subsequence(a: str, b: str) -> int:
    """The length of the longest common subsequence. Bit i of `row` is 0 where the table's row steps up at a[i]; one
    addition updates a whole row of the dynamic programme (Hyyrö 2004)."""
    where = {}
    for i, char in enumerate(a):
        where[char] = where.get(char, 0) | 1 << i
    full = row = (1 << len(a)) - 1
    for char in b:
        u = row & where.get(char, 0)
        row = (row + u | row - u) & full
    return len(a) - row.bit_count()


def common_run(name: str, text: str) -> int:
    """The longest run of equal characters that starts in the name no earlier than in the text."""
    best = 0
    for shift in range(len(name)):
        run = 0
        for a, b in zip(name[shift:], text):
            run = run + 1 if a == b else 0
            best = max(best, run)
    return best


def similarity(name: str, text: str) -> float:
    """How much a text is like a column's name: their longest common subsequence as a share of the longer one, plus
    their common run / 10⁴, less the shorter one's length / 10⁸. Raises ZeroDivisionError for two empty ones."""
    longer, shorter = max(len(name), len(text)), min(len(name), len(text))
    return common_subsequence(name, text) / longer + common_run(name, text) / 1e4 - shorter / 1e8


def most_similar(names: list[str], texts: list[str]) -> tuple[int, int]:
    """Which name is most like which of the texts; the first of equals."""
    likeness = [similarity(name, text) for name in names for text in texts]
    return divmod(likeness.index(max(likeness)), len(texts))


def parse_sql(text: str, header: list[str]) -> dict:
    """SQL in lower case -> its logical form {sel, agg, conds}, by the rule of the authors' code. Raises ValueError,
    IndexError or ZeroDivisionError for what it can't read.

    Column names may be misspelt: the most similar one is meant, the longest first."""
    columns = sorted(((name.lower(), i) for i, name in enumerate(header)), key=lambda c: len(c[0]), reverse=True)
    names = [name for name, _ in columns]
    selection, where, condition = text.partition("where")
    selection = selection.split()[1:-2]  # without `select` and `from table`, which are not looked at
    column, aggregated = most_similar(names, [" ".join(selection), " ".join(selection[1:])])
    aggregate = AGGREGATES.index(selection[0]) if aggregated else 0
    conditions = parse_conditions(condition, columns, header) if where else []
    return {"sel": columns[column][1], "agg": aggregate, "conds": conditions}


def parse_conditions(text: str, columns: list[tuple[str, int]], header: list[str]) -> list[list]:
    """What stands behind `where` -> [[column, operator, value]]. The text is cut at every operator, and at every `and`
    between two of them. Spaces in values are ignored."""
    operators = re.findall("[=><]", text)
    pieces = [piece.strip() for piece in re.split("[=><]", text)]
    first, *middle, last = pieces if operators else pieces * 2
    pieces = [first, *(part for piece in middle for part in piece.split("and")), last]  # column, value, column, ...
    for i in range(0, len(pieces), 2):
        pieces[i] = columns[most_similar([name for name, _ in columns], [pieces[i]])[0]][0]
    for i, operator in enumerate(operators):
        pieces[2 * i] += " " + operator
    marked = f" {' and '.join(f'{a} {b}' for a, b in zip(pieces[::2], pieces[1::2]))} "
    for name, i in columns:  # upper case marks a column, since the text is in lower case
        marked = marked.replace(f" {name} ", f" COL{i} ")
    conditions = []
    for part in re.split(r"(COL\d+ [=><](?!\S))", " ".join(marked.split())):
        if match := re.fullmatch(r"COL(\d+) ([=><])", part):
            conditions.append([int(match[1]), OPERATORS.index(match[2])])
        elif words := part.split():  # a value; before a condition's column there is none, which raises here
            value = [header[int(w[3:])].lower() if w.startswith("COL") else w for w in words]
            conditions[-1].append("".join(value[:-1] if words[-1] == "and" else value).replace(" ", ""))
    return conditions
