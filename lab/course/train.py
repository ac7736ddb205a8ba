"""The laws of train.py: the lines of Algorithm 1 in `lifelong`. They are tried on a run that only takes notes."""

from types import SimpleNamespace

from lab.course.law import expect, law


def notes(lifelong, method: str, kd: str, tasks: list, hook=None) -> list[dict]:
    """Call `lifelong` -> what each call of `learn` was given, and what had been done before.

    All it needs is replaced: a model is its name, a sample is a text. A task has two of them; of the teacher's answers
    one is too long, so that there is one."""
    done, calls = [], []
    student = "the student"

    def get_teacher(run, task):
        done.append(f"trained the teacher of {task.name}")
        return f"teacher of {task.name}"

    def teacher_answers(run, teacher, task, stage):
        return [f"answer of the {teacher}"]

    def replay_samples(run, model, previous, n_new, task, stage):
        names = [old.name for old in previous]
        done.append(f"{model} wrote γ · {n_new} samples of {', '.join(names) or 'no task'} for stage {stage}")
        return [f"pseudo-{name}" for name in names]

    def learn(run, model, phase, current, replay=(), teacher=None, before_step=None):
        what = {"current": list(current), "replay": list(replay), "teacher": teacher, "hook": before_step}
        calls.append({"model": model, "phase": phase, "done": list(done)} | what)
        done.clear()

    lifelong.__globals__.update(
        get_teacher=get_teacher,
        teacher_answers=teacher_answers,
        replay_samples=replay_samples,
        learn=learn,
        kd=SimpleNamespace(Teacher=lambda model, dtype=None: f"Teacher({model})"),
    )
    tasks = [SimpleNamespace(name=name, train=[], test=[]) for name in tasks]
    run = SimpleNamespace(
        args=SimpleNamespace(method=method, kd=kd, gamma=0.2, replay="generated"),
        tasks=tasks,
        samples={task.name: [f"{task.name}-1", f"{task.name}-2"] for task in tasks},
        dtype=None,
        new_student=lambda: student,
        stages=lambda model: enumerate(tasks, 1),
        phase=lambda m, task: f"stage {m}, {task.name}",
        end_stage=lambda model, m, task: None,
    )
    lifelong(run, hook)
    return calls


def expect_notes(wanted, lifelong, of, what: str, method="lamol", kd="word", tasks=("a", "b"), hook=None):
    """Something of what `learn` was given, stage by stage."""

    def calls(method, kd, tasks):
        return notes(lifelong, method, kd, tasks, hook)

    expect(wanted, calls, of, what, method=method, kd=kd, tasks=list(tasks))


def given(name: str):
    """What `learn` was given under this name, in each stage."""
    return lambda calls: [call[name] for call in calls]


@law(2)
def every_task_has_a_teacher(lifelong):
    """Line 1: each task, the first one, too, gets a teacher of its own, a kd.Teacher, from which the student learns."""
    wanted = ["Teacher(teacher of a)", "Teacher(teacher of b)"]
    expect_notes(wanted[:1], lifelong, given("teacher"), "the teacher in `learn` ", tasks=["a"])
    expect_notes(wanted, lifelong, given("teacher"), "the teacher in `learn` ")


@law(2)
def pseudo_data_are_of_earlier_tasks(lifelong):
    """Line 2: before it learns task m, the student writes γ · |D_m| samples of the tasks before m, with |D_m| the
    number of real samples, and they are replayed."""
    names = [[], ["pseudo-a"], ["pseudo-a", "pseudo-b"]]
    expect_notes(names[:2], lifelong, given("replay"), "replay ", kd="none")
    expect_notes(names, lifelong, given("replay"), "replay ", kd="none", tasks=("a", "b", "c"))

    def written(calls):
        return next((line for line in calls[1]["done"] if "wrote" in line), "nothing")

    for kd in ("none", "seq"):
        wanted = "the student wrote γ · 2 samples of a for stage 2"
        expect_notes(wanted, lifelong, written, "before `learn` of b: ", kd=kd)


@law(1)
def without_distillation_there_is_no_teacher(lifelong):
    """LAMOL (--kd none) trains no teacher, and learns the labels."""

    def teachers(calls):
        return [sum("trained" in line for line in call["done"]) + (call["teacher"] is not None) for call in calls]

    expect_notes([0, 0], lifelong, teachers, "teachers: ", kd="none")


@law(1)
def finetuning_replays_nothing(lifelong):
    """`finetune` leaves out line 2."""
    expect_notes([[], []], lifelong, given("replay"), "replay ", method="finetune", kd="none")


@law(1)
def seq_kd_learns_labels_from_the_teachers_answers(lifelong):
    """Seq-KD (--kd seq) learns the teacher's answers in place of the data's, by their labels: `learn` has no
    teacher."""
    wanted = [["answer of the Teacher(teacher of b)"], None]
    expect_notes(wanted, lifelong, in_the_end("current", "teacher"), "current samples and teacher of b: ", kd="seq")


@law(1)
def seq_kd_soft_has_both(lifelong):
    """Seq-KD_soft (--kd seqsoft) learns the teacher's distributions on the teacher's answers."""
    wanted = [["answer of the Teacher(teacher of b)"], "Teacher(teacher of b)"]
    expect_notes(wanted, lifelong, in_the_end("current", "teacher"), "current samples and teacher of b: ", kd="seqsoft")


def in_the_end(*names: str):
    """What `learn` was given in the last stage."""
    return lambda calls: [calls[-1][name] for name in names]


@law(1)
def the_student_learns_the_current_task(lifelong):
    """Lines 3 to 11: in stage m it is the student that learns, in the phase of that stage, the real samples of task m
    as the current ones."""
    expect_notes([["a-1", "a-2"], ["b-1", "b-2"]], lifelong, given("current"), "current samples ", kd="none")
    expect_notes(["the student"] * 2, lifelong, given("model"), "the model that learns: ", kd="none")
    expect_notes(["stage 1, a", "stage 2, b"], lifelong, given("phase"), "phases ", kd="none")


@law(1)
def the_hook_reaches_every_update(lifelong):
    """before_step, a hook for methods of others such as EWC, is handed on to `learn`."""
    expect_notes(["a hook"] * 2, lifelong, given("hook"), "before_step=", kd="none", hook="a hook")


LIFELONG = (
    every_task_has_a_teacher,
    pseudo_data_are_of_earlier_tasks,
    without_distillation_there_is_no_teacher,
    finetuning_replays_nothing,
    seq_kd_learns_labels_from_the_teachers_answers,
    seq_kd_soft_has_both,
    the_student_learns_the_current_task,
    the_hook_reaches_every_update,
)
