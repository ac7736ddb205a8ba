"""The laws of eval.py: the four measures of `summarise`."""

from lab.course.law import expect, law

TASKS = ("a", "b", "c")


def expect_measure(wanted, summarise, R, *names, method="lamol"):
    """Measures of a table R[i][j], the score on task j after stage i."""
    order = list(TASKS[: len(R[0])])
    lines = [
        {"stage": i, "epoch": 1, "task": task, "score": score}
        for i, row in enumerate(R)
        for task, score in zip(order, row)
    ]
    of, what = (lambda summary: [summary[name] for name in names]), f"{', '.join(names)}: "
    expect(wanted, lambda method, R: summarise(method, order, lines), of, what, method=method, R=R)


@law(1)
def average_is_of_the_last_stage(summarise):
    """The average is taken over all tasks after the last stage."""
    expect_measure([75.0], summarise, [[0, 10], [80, 20], [60, 90]], "average")


@law(1)
def average_of_single_is_of_its_models(summarise):
    """With `single` each task has a model of its own, that of its stage, and the average is that of the models."""
    expect_measure([85.0], summarise, [[0, 10], [80, 20], [60, 90]], "average", method="single")


@law(2)
def backward_transfer_is_below_0_where_it_was_forgotten(summarise):
    """Backward transfer is the score in the end minus that right after the task was learned, averaged over all tasks
    but the last. It is negative where the model has forgotten."""
    expect_measure([-20.0], summarise, [[0, 10], [80, 20], [60, 90]], "backward_transfer")
    expect_measure([-30.0], summarise, [[0, 0, 0], [80, 0, 0], [90, 70, 0], [40, 50, 60]], "backward_transfer")


@law(2)
def forgetting_is_from_the_best_score_before(summarise):
    """Forgetting is the best score of any earlier stage minus that in the end, averaged over all tasks but the last. It
    is positive where the model has forgotten, and negative where it is better than ever."""
    expect_measure([20.0], summarise, [[0, 10], [80, 20], [60, 90]], "forgetting")
    expect_measure([-10.0], summarise, [[0, 10], [80, 20], [90, 90]], "forgetting")
    expect_measure([35.0], summarise, [[0, 0, 0], [80, 0, 0], [90, 70, 0], [40, 50, 60]], "forgetting")


@law(2)
def forward_transfer_is_before_a_task_is_learned(summarise):
    """Forward transfer is the score on a task just before it is learned minus that before any, averaged over all tasks
    but the first."""
    expect_measure([10.0], summarise, [[0, 10], [80, 20], [60, 90]], "forward_transfer")
    expect_measure([15.0], summarise, [[5, 10, 0], [80, 20, 7], [60, 90, 20], [50, 70, 95]], "forward_transfer")


@law(1)
def one_task_has_no_transfer(summarise):
    """With one task there is nothing to transfer or forget: three measures are None, neither 0 nor an error."""
    names = ("backward_transfer", "forgetting", "forward_transfer")
    expect_measure([None] * 3, summarise, [[0], [80]], *names)


@law(1)
def single_and_multitask_have_no_transfer(summarise):
    """`single` and `multitask` have no earlier tasks: three measures are None."""
    names = ("backward_transfer", "forgetting", "forward_transfer")
    for method in ("single", "multitask"):
        expect_measure([None] * 3, summarise, [[0, 10], [80, 20], [60, 90]], *names, method=method)


SUMMARISE = (
    average_is_of_the_last_stage,
    average_of_single_is_of_its_models,
    backward_transfer_is_below_0_where_it_was_forgotten,
    forgetting_is_from_the_best_score_before,
    forward_transfer_is_before_a_task_is_learned,
    one_task_has_no_transfer,
    single_and_multitask_have_no_transfer,
)
