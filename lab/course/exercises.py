"""The table of exercises: the functions, which of their lines the student writes, and the laws that they must obey."""

import ast
from dataclasses import dataclass
from pathlib import Path

from lab.course import data, eval, kd, lamol, train
from lab.course.law import Law

ROOT = Path(__file__).parents[2]

MEASURES = """
    # R[i][task] and r(i, j) are there already; final_scores and mean, below, help.
    return {
        "order": order,
        "method": method,
        "scores": R,
        "average": ...,
        "backward_transfer": ...,
        "forgetting": ...,
        "forward_transfer": ...,
    }"""

LINES_OF_THE_ALGORITHM = """
        # get_teacher and kd.Teacher, replay_samples, teacher_answers and learn do the work: call them."""


@dataclass(frozen=True)
class Exercise:
    """One function. The lines from the statement that begins with `first` to the one that begins with `last` are cut
    out; without these, the whole body behind the docstring."""

    file: str  # kd.py
    function: str
    subject: str
    section: str  # of the paper
    laws: tuple[Law, ...]
    first: str = ""
    last: str = ""
    note: str = ""  # what stands in place of the lines, after the `raise`

    @property
    def name(self) -> str:
        return f"{self.file.removesuffix('.py')}.{self.function}"

    @property
    def points(self) -> int:
        return sum(law.points for law in self.laws)


EXERCISES = (
    Exercise("data.py", "encode_parts", "the two rows and their labels", "2.1, Figure 2", data.ENCODE_PARTS),
    Exercise(
        "data.py", "plan_epoch", "`alternate`, the order of updates", "Algorithm 1", data.PLAN_EPOCH, "current = torch"
    ),
    Exercise("kd.py", "nll", "hard targets", "2.2, L_NLL", kd.NLL),
    Exercise("kd.py", "word_kd", "soft targets", "2.2, L_Word-KD", kd.WORD_KD),
    Exercise("kd.py", "token_weights", "what each token counts", "2.3", kd.TOKEN_WEIGHTS),
    Exercise("lamol.py", "pseudo_per_task", "how many pseudo-samples", "2.3", lamol.PSEUDO_PER_TASK),
    Exercise("lamol.py", "top_k_filter", "top-k sampling", "Appendix A, Table 7", lamol.TOP_K_FILTER),
    Exercise("lamol.py", "why_rejected", "what is a pseudo-sample", "2.1", lamol.WHY_REJECTED),
    Exercise(
        "eval.py", "summarise", "the four measures", "4 (the average)", eval.SUMMARISE, "def best(j)", note=MEASURES
    ),
    Exercise(
        "train.py",
        "lifelong",
        "the lines of Algorithm 1",
        "Algorithm 1",
        train.LIFELONG,
        'if args.kd != "none"',
        "learn(run",
        LINES_OF_THE_ALGORITHM,
    ),
)


def lines_of(source: str, exercise: Exercise) -> tuple[int, int]:
    """The first and the last line, counted from 1, of what the student writes."""
    (function,) = (node for node in ast.parse(source).body if getattr(node, "name", "") == exercise.function)
    statements = [node for node in ast.walk(function) if isinstance(node, ast.stmt)]
    lines = source.splitlines()

    def find(beginning: str):
        (found,) = (node for node in statements if lines[node.lineno - 1].strip().startswith(beginning))
        return found

    first = find(exercise.first).lineno if exercise.first else function.body[0].end_lineno + 1
    return first, find(exercise.last).end_lineno if exercise.last else function.end_lineno


def table() -> str:
    """The exercises as a Markdown table."""
    rows = [f"| {i} | `{e.name}` | {e.subject} | {e.section} | {e.points} |" for i, e in enumerate(EXERCISES, 1)]
    head = ["| | function | what it is | section of the paper | points |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*head, *rows, f"| | all | | | {sum(e.points for e in EXERCISES)} |"])
