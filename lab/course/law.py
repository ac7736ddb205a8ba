"""A law: a sentence that a function must obey, what it is worth, and small worked inputs on which it is tried.

Inputs stand in a law from the smallest to the largest. So the first that fails is the smallest one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from data import Group


class Broken(Exception):
    """A law does not hold: for which input and, after a tab, what was expected and what came."""


@dataclass(frozen=True)
class Law:
    name: str
    points: int
    words: str  # the sentence, which a student reads when it fails
    check: Callable  # check(function) raises Broken, or whatever the function raises


def law(points: int):
    """Make a function `name(function)` with the law as its docstring a Law."""
    return lambda check: Law(check.__name__, points, " ".join(check.__doc__.split()), check)


def expect(wanted, function, of=lambda result: result, what="", **inputs):
    """Call a function with inputs, by position, and compare `of` its result with what is wanted.

    what: a name for it. Raises Broken when it differs, or when the function or `of` raises."""
    given = ", ".join(f"{name}={shown(value)}" for name, value in inputs.items() if shown(value))
    try:
        got = plain(of(function(*inputs.values())))
    except Exception as e:
        if str(e).startswith("exercise "):  # the line that the student has to replace is still there
            raise
        raise Broken(f"{given}\t{describe(e)}") from None
    if not same(got, wanted):
        raise Broken(f"{given}\texpected {what}{shown(wanted)}, got {shown(got)}")


def describe(error: BaseException) -> str:
    """An error in a line, with where in the student's file it was raised. Only that has a name without folders."""
    where, at = "", error.__traceback__
    while at:
        if "/" not in (file := at.tb_frame.f_code.co_filename) and file.endswith(".py"):
            where = f" ({file}, line {at.tb_lineno})"
        at = at.tb_next
    text = one_line(str(error))
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"


def one_line(text: str) -> str:
    """At most 200 characters, all of which can be printed in a line."""
    return "".join(char if char.isprintable() else " " for char in text[:200]).strip()


# ---------------------------------------------------------------------- values


def plain(x):
    """Tensors, arrays and tuples as lists of numbers. Of other objects their type."""
    if torch.is_tensor(x):
        x = x.detach().tolist()
    elif hasattr(x, "tolist"):
        x = x.tolist()
    if isinstance(x, list | tuple):
        return [plain(y) for y in x]
    if x is Ellipsis:
        return "..."
    return x if x is None or isinstance(x, str | bool | int | float) else f"<{type(x).__name__}>"


def flat(x) -> list:
    """The numbers of a tensor or of nested lists, one after another."""
    x = plain(x)
    return [y for part in x for y in flat(part)] if isinstance(x, list) else [x]


def same(got, wanted) -> bool:
    """Equal, numbers up to rounding. A whole number must be an int where one is wanted."""
    if isinstance(wanted, list):
        return isinstance(got, list) and len(got) == len(wanted) and all(map(same, got, wanted))
    if isinstance(wanted, float):
        return isinstance(got, float | int) and math.isclose(got, wanted, rel_tol=1e-4, abs_tol=1e-6)
    return type(got) is type(wanted) and got == wanted


def shown(x) -> str:
    """A value in a hint; "" for an object that says nothing."""
    if isinstance(x, Group):
        names = ("labels", "lm", "replay", "soft")
        return "(" + ", ".join(f"{name}={shown(getattr(x, name).long())}" for name in names) + ")"
    if torch.is_tensor(x):
        x = x.detach().tolist()
    if isinstance(x, list | tuple):
        return f"[{', '.join(map(shown, x))}]"
    if isinstance(x, bool) or x is None:
        return str(x)
    if isinstance(x, float):
        text = f"{x:.4g}"
        return text if not math.isfinite(x) or set(text) & set(".e") else text + ".0"
    return one_line(str(x)) if isinstance(x, int | str) else ""
