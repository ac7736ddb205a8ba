"""Figures 3 to 5 and the figure of the toy comparison. python -m pytest tests/test_figures.py"""

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from paper_runs import as_published, at, finish, published, rows_of, same

from lab.paper.__main__ import main
from lab.paper.experiments import TOY_ORDERS
from lab.paper.runs import FIGURES, METHODS, RunKey

COLORS = {label: color for label, (_, color, _) in METHODS.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return as_published(tmp_path_factory.mktemp("published"), FIGURES)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn."""
    figures, savefig = [], Figure.savefig

    def save(figure, *arguments, **keywords):
        figures.append(figure)
        savefig(figure, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", save)
    return figures


def colors_of(ax) -> dict[str, str]:
    return {line.get_label(): to_hex(line.get_color()).upper() for line in ax.lines if line.get_label() in METHODS}


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_has_a_panel_a_task_a_line_a_method_and_its_stages_marked(figure, runs, tmp_path, drawn, capsys):
    out = tmp_path / "made" / "here.png"
    assert main([figure, "--model", "gpt2", "--runs-dir", str(runs), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_bytes()[:4] == b"\x89PNG" and out.stat().st_size > 10_000
    (fig,), tasks = drawn, FIGURES[figure].split(",")
    assert [ax.get_ylabel() for ax in fig.axes] == [f"{task}, %" for task in tasks]
    labels = [label for label in METHODS if figure == "figure3" or label != "finetune"]
    for ax, task in zip(fig.axes, tasks):
        assert colors_of(ax) == {label: COLORS[label] for label in labels}
        stages = [line.get_xdata()[0] for line in ax.lines if line.get_label() not in METHODS]
        assert stages == [3 * m for m in range(len(tasks))] and ax.get_xlim() == (0, 3 * len(tasks))
        for line in ax.lines[: len(labels)]:
            assert list(line.get_xdata()) == list(range(3 * len(tasks) + 1))
            assert line.get_ydata()[-1] == published(RunKey(FIGURES[figure], line.get_label(), 0))[task]
            assert max(line.get_ydata()) < ax.get_ylim()[1]
    assert [text.get_text() for text in fig.axes[0].texts] == [f"learns {task}" for task in tasks]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == labels


def test_a_figures_numbers_come_as_csv_too(runs, capsys):
    rows = rows_of(capsys, "figure3", "--runs-dir", runs)
    assert len(rows) == 5 * 3 * 10 and {x["paper"] for x in rows} == {""}
    assert at(rows, "LAMOL", "9", "woz")["ours"] == "76.1" and at(rows, "LAMOL", "0", "woz")["ours"] == "0.0"


def test_seeds_are_drawn_as_mean_and_band(tmp_path, drawn):
    for seed, score in ((0, 40.0), (1, 50.0)):
        finish(tmp_path, RunKey(FIGURES["figure3"], "LAMOL", seed), same(FIGURES["figure3"], score))
    assert main(["figure3", "--seeds", "0,1", "--runs-dir", str(tmp_path)]) == 0
    (line, *_), (band,) = drawn[0].axes[0].lines, drawn[0].axes[0].collections
    assert line.get_ydata()[-1] == 45.0
    ends = band.get_paths()[0].vertices
    assert sorted({round(y, 3) for x, y in ends if x == 3}) == pytest.approx([45 - 50**0.5, 45 + 50**0.5], abs=1e-3)
    assert (tmp_path / "figure3.png").stat().st_size > 10_000


def test_without_runs_no_figure_is_written(tmp_path, capsys):
    for what in ("figure3", "toy"):
        folders = ["--runs-dir", str(tmp_path), "--keep", str(tmp_path / "none")]
        assert main([what, *folders, *(["--out", str(tmp_path / "x.png")] if what == "toy" else [])]) == 0
        assert f"runs found in {tmp_path}" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_the_toy_figure_has_both_orders_and_the_same_colors(tmp_path, drawn):
    assert len(set(COLORS.values())) == len({str(line) for *_, line in METHODS.values()}) == len(METHODS) == 5
    for column, order in enumerate(TOY_ORDERS):
        for i, label in enumerate(METHODS):
            finish(tmp_path, RunKey(order, label, 0), same(order, 50.0 + 10 * column + i), epochs=2)
    finish(tmp_path, RunKey(TOY_ORDERS[0], "single", 0), same(TOY_ORDERS[0], 90.0))
    out = tmp_path / "made" / "x.png"
    assert main(["toy", "--runs-dir", str(tmp_path), "--keep", str(tmp_path / "none"), "--out", str(out)]) == 0
    *panels, bars = drawn[0].axes
    assert out.stat().st_size > 10_000 and [colors_of(ax) for ax in panels] == [COLORS] * 6
    assert [ax.get_ylabel() for ax in panels] == [f"{task}, %" for task in TOY_ORDERS[0].split(",")] * 2
    for ax, column in zip(panels, (0, 0, 0, 1, 1, 1)):
        assert [line.get_ydata()[-1] for line in ax.lines[:5]] == [50.0 + 10 * column + i for i in range(5)]
        assert ax.get_xlim() == (0, 6)
    colors = [to_hex(bar.get_facecolor()).upper() for bar in bars.patches]
    assert colors == [*COLORS.values(), "#999999", *COLORS.values()]
    assert [bar.get_height() for bar in bars.patches] == [*range(50, 55), 90, *range(60, 65)]
