"""`plot_bits` draws a training, and `plot_pareto` the models of several budgets."""

import itertools
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from dqmq_tf.report import tables
from dqmq_tf.report.plots import figure_class
from dqmq_tf.training.bit_history import BITS_PREFIX, BitHistory
from dqmq_tf.training.pareto_checkpoint import ParetoCheckpoint, ParetoEntry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW_INCHES, _PANEL_INCHES, _WIDTH_INCHES = 0.24, 1.6, 8.0
_MOST_NUMBERS = 400
_PHASE_COLORS = {"warm-up": "0.93", "search": "#E3EEF7", "settled": "#E6F3EC", "frozen": "#F5EAF1"}
_COLOR, _GRAY = "#0072B2", "0.6"
_MOST_TICKS = 12
_Row = Mapping[str, Any]


def plot_bits(
    history: BitHistory | keras.callbacks.History, path: str | os.PathLike[str] | None = None
) -> "Figure":
    """Draws how the bits and the cost changed from epoch to epoch.

    Args:
        history: A `dqmq_tf.callbacks.BitHistory`, for the bits of each layer, the phases and the
            budget as well; or what `fit` returns, for the mean bits and the cost alone.
        path: The file to write; its extension gives the format. None to write no file.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the history has no epochs, or is not of a `DQMQModel`.

    Example:

    >>> bits = dqmq_tf.callbacks.BitHistory()
    >>> qmodel.fit(dataset, epochs=8, callbacks=[bits])
    >>> dqmq_tf.plot_bits(bits, "training.png")
    """
    rows = _rows(history)
    points = [name for name in rows[0] if name.startswith(BITS_PREFIX)]
    heights = [_PANEL_INCHES, _PANEL_INCHES]
    if points:
        heights.insert(0, _ROW_INCHES * len(points) + 0.6)
    figure = figure_class()(figsize=(_WIDTH_INCHES, sum(heights) + 0.8), layout="constrained")
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    panels = [figure.add_subplot(grid[0, 0])]
    for number in range(1, len(heights)):
        panels.append(figure.add_subplot(grid[number, 0], sharex=panels[0]))
    if points:
        _draw_points(panels[0], rows, points)
    _draw_curve(panels[-2], rows, "mean_bits", "mean bits")
    panels[-2].margins(y=0.2)
    _draw_cost(panels[-1], rows)
    for panel in panels[-2:]:
        _draw_phases(panel, rows)
    _label_phases(panels[-2], rows)
    for panel in panels[:-1]:
        panel.tick_params(labelbottom=False)
    panels[-1].set_xlabel("epoch")
    step = math.ceil(len(rows) / _MOST_TICKS)
    panels[-1].set_xticks(
        range(0, len(rows), step), [str(n + 1) for n in range(0, len(rows), step)]
    )
    panels[-1].set_xlim(-0.5, len(rows) - 0.5)
    return _saved(figure, path)


def plot_pareto(
    models: ParetoCheckpoint | Sequence[ParetoEntry],
    path: str | os.PathLike[str] | None = None,
    *,
    float_value: float | None = None,
) -> "Figure":
    """Draws cost and metric of the models of several budgets, and the front of the best ones.

    Args:
        models: A `dqmq_tf.callbacks.ParetoCheckpoint`, or entries of one.
        path: The file to write; its extension gives the format. None to write no file.
        float_value: The metric of the float model, drawn as a line. None to draw none.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there are no entries, or if they are of budgets of several kinds.

    Example:

    >>> dqmq_tf.plot_pareto(best, "pareto.png", float_value=0.91)
    """
    if isinstance(models, ParetoCheckpoint):
        entries, front = models.entries(), models.front()
    else:
        entries = front = tuple(models)
    kinds = {entry.kind for entry in entries}
    if len(kinds) != 1:
        raise ValueError(
            f"plot_pareto needs entries of budgets of one kind. Found {sorted(kinds) or 'none'}: train "
            "with a ParetoCheckpoint, or pass entries of one kind."
        )
    figure = figure_class()(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    front = tuple(sorted(front, key=lambda entry: entry.cost))
    beaten = [entry for entry in entries if entry not in front]
    axes.plot([e.cost for e in front], [e.value for e in front], "o-", color=_COLOR,
              label="best models" if beaten else "models")  # fmt: skip
    if beaten:
        axes.plot([e.cost for e in beaten], [e.value for e in beaten], "x", color=_GRAY,
                  label="beaten by a cheaper one")  # fmt: skip
    # On the side of the points where the front does not run.
    is_rising = front[-1].value > front[0].value
    for entry in entries:
        axes.annotate(
            f"budget {tables.budget_number(entry.budget, entry.kind)}",
            (entry.cost, entry.value), xytext=(5, -10 if is_rising else 5),
            textcoords="offset points",
            fontsize=7, color="0.35",
        )  # fmt: skip
    if float_value is not None:
        axes.axhline(float_value, color="black", linewidth=0.8, linestyle="--", label="float model")
    axes.margins(x=0.25, y=0.2)
    if max(entry.cost for entry in entries) >= 1_000:
        axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel(f"cost, {kinds.pop()}")
    axes.set_ylabel(entries[0].monitor)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, frameon=False)
    return _saved(figure, path)


def _rows(history: Any) -> list[_Row]:
    """Returns a dictionary for each epoch."""
    if isinstance(history, BitHistory):
        rows: list[_Row] = list(history.rows)
    else:
        columns = getattr(history, "history", None) or {}
        rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
    if not rows or not {"mean_bits", "cost"} <= set(rows[0]):
        raise ValueError(
            "plot_bits needs epochs of a DQMQModel's fit: pass a dqmq_tf.callbacks.BitHistory that "
            f"was passed to fit, or what fit returns. Found {type(history).__name__} with "
            f"{len(rows)} epochs."
        )
    return rows


def _draw_points(axes: "Axes", rows: Sequence[_Row], points: Sequence[str]) -> None:
    """Draws a cell for each decision point and epoch, colored by its mean bits."""
    bits = np.array([[row[point] for row in rows] for point in points])
    low, high = min(2.0, bits.min()), max(8.0, bits.max())
    image = axes.imshow(bits, aspect="auto", cmap="viridis", vmin=low, vmax=high)
    axes.figure.colorbar(image, ax=axes, label="mean bits", shrink=min(1.0, 8 / len(points)))
    labels = [point.removeprefix(BITS_PREFIX) for point in points]
    axes.set_yticks(range(len(points)), labels, fontsize=8)
    axes.tick_params(axis="y", length=0)
    if bits.size <= _MOST_NUMBERS and len(rows) <= _MOST_TICKS:
        for (point, epoch), value in np.ndenumerate(bits):
            color = "white" if value < (low + high) / 2 else "black"
            text = f"{value:.0f}" if value == round(value) else f"{value:.1f}"
            axes.text(epoch, point, text, ha="center", va="center", fontsize=7, color=color)
    axes.set_title("Bits of each decision point", fontsize=10)


def _draw_curve(axes: "Axes", rows: Sequence[_Row], name: str, label: str) -> None:
    axes.plot(range(len(rows)), [row[name] for row in rows], "o-", color=_COLOR, markersize=4)
    axes.set_ylabel(label)
    axes.grid(color="0.85", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_cost(axes: "Axes", rows: Sequence[_Row]) -> None:
    kind = rows[-1].get("budget_kind")
    _draw_curve(axes, rows, "cost", "cost" if kind is None else f"cost,\n{kind}")
    if kind is not None:
        budgets = [row["budget"] for row in rows]
        axes.step(range(len(rows)), budgets, where="mid", color="#D55E00", linestyle="--",
                  linewidth=1.2, label="budget")  # fmt: skip
        axes.legend(fontsize=8, loc="best")
    axes.margins(y=0.2)


def _phases(rows: Sequence[_Row]) -> list[tuple[str, int, int]]:
    """Returns `(phase, first epoch, last epoch)` of each stretch of epochs in one phase."""
    stretches = []
    for phase, group in itertools.groupby(enumerate(rows), lambda item: item[1].get("phase")):
        epochs = [epoch for epoch, _ in group]
        if phase is not None:
            stretches.append((str(phase), epochs[0], epochs[-1]))
    return stretches


def _draw_phases(axes: "Axes", rows: Sequence[_Row]) -> None:
    for phase, first, last in _phases(rows):
        axes.axvspan(first - 0.5, last + 0.5, color=_PHASE_COLORS[phase], linewidth=0, zorder=0)


def _label_phases(axes: "Axes", rows: Sequence[_Row]) -> None:
    for phase, first, last in _phases(rows):
        axes.annotate(
            phase, ((first + last) / 2, 1.0), xycoords=("data", "axes fraction"),
            xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8,
        )  # fmt: skip


def _saved(figure: "Figure", path: str | os.PathLike[str] | None) -> "Figure":
    if path is not None:
        figure.savefig(pathlib.Path(path), dpi=150)
    return figure
