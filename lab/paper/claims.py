"""What the paper's text claims, judged on the paper's own numbers and on ours.

    python -m lab.paper claims

A claim is a function of the numbers, n(table, block, row, column). It returns what it looked at, as text, and whether
the claim holds.
"""

from statistics import mean

from lab.paper.experiments import DEVIATION, MEAN, PLAIN, PUBLISHED, Cell, orders_of
from lab.paper.runs import FIGURES

SOFT, DISTILLED = ("Word-KD", "Seq-KD_soft"), ("Word-KD", "Seq-KD_soft", "Seq-KD")
RIGHT_TO_LEFT = orders_of("table4")[1]


def improves_the_average(n):
    """Section 4.1, Table 3: the average score, mean over six orders."""
    values = [n("table3", MEAN, label, "avg") for label in ("LAMOL", *DISTILLED)]
    return "LAMOL {:.1f}; {:.1f}, {:.1f}, {:.1f}".format(*values), min(values[1:]) > values[0]


def lowers_the_deviation(n):
    """Section 4.1, Table 3: the standard deviation over six orders, mean over the tasks."""
    values = [n("table3", DEVIATION, label, "avg") for label in ("LAMOL", *DISTILLED)]
    return "LAMOL {:.1f}; {:.1f}, {:.1f}, {:.1f}".format(*values), max(values[1:]) < values[0]


def who_helps_where(n):
    """Section 4.1, Table 2: Seq-KD "consistently" improves cnn most, soft targets woz and sql "for most cases"."""

    def ahead(soft, order, task):  # of Seq-KD
        return n("table2", order, soft, task) - n("table2", order, "Seq-KD", task)

    orders = orders_of("table2")
    hard = sum(all(ahead(soft, order, "cnn") < 0 for soft in SOFT) for order in orders)
    soft = sum(ahead(soft, order, task) > 0 for soft in SOFT for order in orders for task in ("woz", "sql"))
    return f"Seq-KD first on cnn in {hard} of 6; soft before it on woz, sql in {soft} of 24", hard == 6 and soft > 12


def soft_targets_are_faster(n):
    """Section 4.1 on Figure 3: the mean score of the first three epochs of the first two stages."""
    order = FIGURES["figure3"].split(",")
    epochs = n.epochs("figure3") // len(order)

    def early(labels):
        points = [(m, e) for m in (0, 1) for e in (1, 2, 3) if e <= epochs]
        return mean(n("figure3", order[m], label, m * epochs + e) for m, e in points for label in labels)

    soft, hard = early(SOFT), early(("Seq-KD", "LAMOL"))
    return f"{soft:.1f} against {hard:.1f}, first 3 epochs of woz and sql", soft > hard


def transfers_forward(n):
    """Section 4.2, Figure 4c: what rnnlg.hotel gains while rnnlg.rest, the task before it, is learned."""
    epochs, rise = n.epochs("figure4") // 5, {}
    for label in ("LAMOL", *DISTILLED):
        before, after = (n("figure4", "rnnlg.hotel", label, stage * epochs) for stage in (1, 2))
        rise[label] = after - before
    shown = ", ".join(f"{label} {value:+.1f}" for label, value in rise.items())
    return shown, min(rise.values()) > 0 and max(rise, key=rise.get) == "Seq-KD"


def easiest_first_passes_multitask(n):
    """Section 4.2, Table 4: the averages of the right-to-left order against the multitask rows."""
    multi = max(n("table4", PLAIN, label, "avg") for label in ("Multi QA", "Multi QA+LM"))
    ours = [n("table4", RIGHT_TO_LEFT, label, "avg") for label in ("LAMOL", *DISTILLED)]
    return "multitask {:.1f}; {:.1f}, {:.1f}, {:.1f}, {:.1f}".format(multi, *ours), min(ours) > multi


def gains_where_the_teacher_is_right(n):
    """Section 4.3, Table 6: what each group of examples adds to the gain over LAMOL."""
    accuracy, right, wrong = PUBLISHED["table6"]["columns"]
    gains = [
        [n("table6", "all", label, g) - n("table6", "all", "LAMOL", g) for g in (right, wrong)] for label in DISTILLED
    ]
    shown = ", ".join("(A) {:+.2f} (B) {:+.2f}".format(*gain) for gain in gains)
    share = n("table6", "all", "teacher", accuracy) / 100  # of examples in (A): the total gain is the weighted sum
    return shown, all(share * a > max(0, (1 - share) * b) for a, b in gains)


def costs_little(n):
    """Sections 1 and 6, which give no numbers: seconds with the teachers, parameters of the last student."""
    ratios = [n("cost", "seconds", label, "") / n("cost", "seconds", "LAMOL", "") for label in DISTILLED]
    size = {n("cost", "parameters", label, "") for label in ("LAMOL", *DISTILLED)}
    shown = "{:.1f}, {:.1f}, {:.1f} times LAMOL's, teachers included; ".format(*ratios)
    return shown + f"{'the same' if len(size) == 1 else 'another'} model size", len(size) == 1 and max(ratios) <= 2


CLAIMS = {  # numbers of methods are in the order Word-KD, Seq-KD_soft, Seq-KD
    "L2KD improves LAMOL's average over six orders": improves_the_average,
    "KD lowers the mean deviation over orders": lowers_the_deviation,
    "Seq-KD is the best KD on cnn in every order; soft targets are before it on woz and sql in most": who_helps_where,
    "soft targets raise scores faster in the first epochs of a stage than hard ones": soft_targets_are_faster,
    "rnnlg.hotel rises before its data is seen, most with Seq-KD": transfers_forward,
    "easiest-to-hardest, lifelong learning passes the multitask rows of Table 4": easiest_first_passes_multitask,
    "KD's gain in classification comes from where the teacher is right (A) more than from where it is wrong (B)": (
        gains_where_the_teacher_is_right
    ),
    "little extra time (our bound: twice), no extra memory in the final model": costs_little,
}


class Numbers:
    """n(table, block, row, column) -> a number, ours or the paper's. Raises LookupError if it is missing.

    n.mark: * once a number was asked for that lacks some of its runs."""

    def __init__(self, cells: list[Cell], ours: bool):
        values = {cell[:4]: (mean(cell.ours) if cell.ours else None) if ours else cell.paper for cell in cells}
        self.values = {place: value for place, value in values.items() if value is not None}
        self.partial = {cell[:4] for cell in cells if ours and cell.runs < cell.wanted}
        self.mark = ""

    def __call__(self, *place):
        if place in self.partial:
            self.mark = "*"
        return self.values[place]

    def epochs(self, figure):
        """The epochs of all stages of a figure's runs."""
        return max((place[3] for place in self.values if place[0] == figure), default=0)


def claims_table(cells: list[Cell]) -> list[tuple[str, str, str, str]]:
    """(claim, the paper's numbers, ours, whether it holds in ours). A dash stands for missing numbers, and * marks
    numbers that lack some runs."""
    rows = []
    for claim, judge in CLAIMS.items():
        judged = []
        for ours in (False, True):
            n = Numbers(cells, ours)
            try:
                shown, holds = judge(n)
                judged.append((shown + n.mark, "yes" if holds else "no"))
            except (LookupError, ValueError):  # a mean of nothing: a figure without runs
                judged.append(("–", "–"))
        (paper, _), (own, holds) = judged
        rows.append((claim, paper, own, holds))
    return rows
