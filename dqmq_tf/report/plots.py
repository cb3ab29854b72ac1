"""The figure of a `Summary`: bits per layer, and accuracy and cost by quality."""

import dataclasses
import pathlib
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dqmq_tf.quality.degradations import DEGRADATIONS
from dqmq_tf.report import tables
from dqmq_tf.report.rows import BitStatistics, FifthRow, QualityRow
from dqmq_tf.report.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, which color-blind readers can tell apart. Each family of degradations has
# a color, and each kind in it a marker.
_COLORS = {
    "noise": "#D55E00",
    "blur": "#0072B2",
    "resolution": "#009E73",
    "photometric": "#CC79A7",
}
# One color and marker for each measure of quality, in turn.
_MEASURE_COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
_MARKERS = ("o", "s", "^", "D")
_LINES = ("-", "--", ":", "-.")
_SHUFFLED: dict[str, Any] = {"linestyle": ":", "fillstyle": "none"}
_Row = QualityRow | FifthRow
_ROW_INCHES = 0.23
_BITS_INCHES, _QUALITY_INCHES, _LEGEND_INCHES, _LABEL_INCHES = 3.6, 4.6, 1.9, 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _QualityPanel:
    """A plot of one number by kind and severity, or by fifths.

    Attributes:
        title: The title.
        label: The label of the y axis.
        column: The attribute of a row that holds the number.
        factor: The number is multiplied by this.
    """

    title: str
    label: str
    column: str
    factor: float = 1.0

    def value(self, row: _Row) -> float:
        """Returns the number of a row."""
        return self.factor * getattr(row, self.column)

    def shuffled(self, row: _Row) -> float | None:
        """Returns the number for the quality of other inputs. None if it was not measured."""
        if row.shuffled is None or self.column not in ("accuracy", "loss"):
            return None
        return self.factor * row.shuffled


def figure_class() -> "type[Figure]":
    """Returns matplotlib's `Figure`, which draws without a display.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            '`plot` needs matplotlib. Install the extra `plot`: pip install ".[plot]" in the checkout '
            "of dqmq_tf. `print(summary)` works without it."
        ) from error
    return Figure


def plot_summary(
    summary: Summary, path: str | pathlib.Path | None = None, by: str | None = None
) -> "Figure":
    """Draws the bits per layer, and accuracy, bits and cost by kind and severity or by fifths.

    Args:
        summary: A `dqmq_tf.Summary`.
        path: The file to write; its extension gives the format. None to write no file.
        by: See `Summary.plot`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: See `Summary.plot`.
    """
    if by not in (None, "layer", "quality"):
        raise ValueError(f"by={by!r} must be 'layer', 'quality' or None for both.")
    bit_columns = {} if by == "quality" else _bit_columns(summary)
    kind_rows = [row for row in summary.qualities if row.severity is not None]
    rows: Sequence[_Row] = [*kind_rows] or summary.fifths
    if by == "quality" and not rows:
        raise ValueError(
            "by='quality' needs a summary of data whose quality is known: pass images to "
            "dqmq_tf.summary, with quality.mixed_quality(..., with_quality=True) or with measures of "
            "your own."
        )
    panels = [] if by == "layer" else _quality_panels(summary, rows, with_bits=by == "quality")
    all_bits = [bits for column in bit_columns.values() for bits in column if bits is not None]
    most_markers = max((len(_differing_kinds(bits)) for bits in all_bits), default=0)
    height = max(
        (_ROW_INCHES + 0.01 * most_markers) * len(summary.layers) * bool(bit_columns) + 1.9,
        1.2 + 2.9 * len(panels),
        4.2,
    )
    widths = [_BITS_INCHES] * len(bit_columns)
    if panels:
        widths.append(_QUALITY_INCHES)
    widths.append(_LEGEND_INCHES)
    figure = figure_class()(figsize=(sum(widths) + _LABEL_INCHES, height), layout="constrained")
    grid = figure.add_gridspec(1, len(widths), width_ratios=widths)
    axes = None
    for number, (title, column) in enumerate(bit_columns.items()):
        axes = figure.add_subplot(grid[0, number], sharey=axes)
        _draw_bits(axes, title, column, tables.layer_labels(summary) if number == 0 else None)
    if panels:
        # Empty space below the panels keeps their proportions next to a long list of layers.
        empty_inches = max(height - 1.2 - 3.4 * len(panels), 0.01)
        heights = [3.4] * len(panels) + [empty_inches]
        cells = grid[0, -2].subgridspec(len(heights), 1, height_ratios=heights)
        for number, panel in enumerate(panels):
            _draw_quality(figure.add_subplot(cells[number, 0]), rows, panel)
    _draw_legend(figure.add_subplot(grid[0, -1]), all_bits, rows)
    line_length = int(10 * figure.get_figwidth())
    figure.suptitle(
        "\n".join(textwrap.fill(line, line_length) for line in _title(summary)), fontsize=11
    )
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _bit_columns(summary: Summary) -> dict[str, list[BitStatistics | None]]:
    """Returns the bits to draw for each layer, by the title of the plot."""
    columns: dict[str, list[BitStatistics | None]] = {
        "Weight bits": [row.bits for row in summary.layers]
    }
    decided = {row.name for row in summary.activations}
    if decided:
        columns["Bits of the layer's input"] = [
            row.input_bits if row.input in decided else None for row in summary.layers
        ]
    return columns


def _title(summary: Summary) -> tuple[str, str]:
    """Returns the two lines above the figure."""
    kind, result = summary.budget.kind, ""
    if summary.qualities:
        overall = summary.qualities[-1]
        if overall.accuracy is not None:
            result = f", accuracy {100 * overall.accuracy:.1f} % on {overall.samples:,} inputs"
        elif overall.loss is not None:
            result = f", loss {overall.loss:.4g} on {overall.samples:,} inputs"
    limit = tables.budget_number(summary.budget.value, kind)
    cost = f"{kind} {tables.budget_number(summary.cost, kind)}, budget {limit}"
    state = f"{summary.target}, {summary.phase}; {tables.meaning(summary)}"
    return f"{summary.model}: {cost}{result}", state


def _style(kind: str) -> dict[str, Any]:
    """Returns the color, marker and line of a kind of degradation."""
    if kind == "clean":
        return {"color": "black", "marker": "*", "linestyle": "--"}
    family = DEGRADATIONS[kind].__module__.rsplit(".", 1)[-1]
    relatives = [k for k, f in DEGRADATIONS.items() if f.__module__.endswith(f".{family}")]
    index = relatives.index(kind)
    return {"color": _COLORS[family], "marker": _MARKERS[index], "linestyle": _LINES[index]}


def _draw_bits(
    axes: "Axes", title: str, column: Sequence[BitStatistics | None], labels: list[str] | None
) -> None:
    """Draws one row per layer: the range over the inputs, and the mean.

    Args:
        axes: Where to draw.
        title: The title.
        column: The bits of each layer. A layer with None gets an empty row.
        labels: The names of the layers. None to share them with the plot on the left.
    """
    for row, bits in enumerate(column):
        if row % 2:
            axes.axhspan(row - 0.5, row + 0.5, color="0.95", linewidth=0, zorder=0)
        if bits is None:
            continue
        if bits.least < bits.most:
            axes.plot([bits.least, bits.most], [row, row], color="0.7", linewidth=4, zorder=1,
                      solid_capstyle="butt")  # fmt: skip
        means = _differing_kinds(bits)
        for index, (kind, mean) in enumerate(means.items()):
            offset = 0.7 * ((index + 0.5) / len(means) - 0.5)
            style = {**_style(kind), "linestyle": ""}
            axes.plot(mean, row + offset, markersize=4, zorder=3, **style)
        if not means:
            axes.plot(bits.mean, row, "o", color="black", markersize=6, zorder=3)
    axes.set_title(title, fontsize=10)
    drawn = [bits for bits in column if bits is not None]
    low, high = min(bits.least for bits in drawn), max(bits.most for bits in drawn)
    ticks = range(max(min(low, 2), 1), max(high, 8) + 1)
    axes.set_xlim(ticks[0] - 0.4, ticks[-1] + 0.4)
    axes.set_xticks(ticks)
    axes.set_xlabel("bits")
    axes.grid(axis="x", color="0.85", linewidth=0.6)
    axes.set_axisbelow(True)
    if labels is None:
        axes.tick_params(labelleft=False)
    else:
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _differing_kinds(bits: BitStatistics) -> dict[str, float]:
    """Returns the mean bits of each kind, or nothing if all kinds have the same."""
    means = {round(mean, 2) for mean in bits.by_kind.values()}
    return bits.by_kind if len(means) > 1 else {}


def _quality_panels(summary: Summary, rows: Sequence[_Row], with_bits: bool) -> list[_QualityPanel]:
    """Returns the panels to draw for the rows of known quality."""
    if not rows:
        return []
    panels: list[_QualityPanel] = []
    counts = sorted({row.samples for row in rows})
    limits = dict.fromkeys((counts[0], counts[-1]))
    points = f"{' to '.join(f'{n:,}' for n in limits)} inputs per point"
    score = tables.metric(summary)
    if score == "accuracy":
        panels.append(
            _QualityPanel(
                title=f"Accuracy, {points}", label="top-1 accuracy (%)", column=score, factor=100.0
            )
        )
    elif score == "loss":
        panels.append(_QualityPanel(title=f"Loss, {points}", label="loss", column=score))
    if with_bits:
        panels += [
            _QualityPanel(title=title, label="mean bits", column=column)
            for title, column in (
                ("Bits of weights", "weight_bits"),
                ("Bits of the layers' inputs", "activation_bits"),
            )
            if len({round(getattr(row, column), 2) for row in rows}) > 1
        ]
    lowest, highest = min(row.bit_ops for row in rows), max(row.bit_ops for row in rows)
    if highest > 1.0001 * lowest:
        units = ((1e9, " (billions)"), (1e6, " (millions)"), (1e3, " (thousands)"))
        unit, name = next((u for u in units if highest >= u[0]), (1.0, ""))
        panels.append(
            _QualityPanel(
                title="Cost of the chosen bits",
                label=f"BitOPs per input{name}",
                column="bit_ops",
                factor=1.0 / unit,
            )
        )
    elif panels:
        note = f"all inputs cost the same: {tables.si(highest)} BitOPs"
        panels[0] = dataclasses.replace(panels[0], title=f"{panels[0].title}\n{note}")
    return panels


def _draw_quality(axes: "Axes", rows: Sequence[_Row], panel: _QualityPanel) -> None:
    """Draws a curve over the severities for each kind, or over the fifths for each measure."""
    curves: dict[str, list[_Row]] = {}
    for row in rows:
        curves.setdefault(_curve(row), []).append(row)
    for name, points in curves.items():
        values = [panel.value(row) for row in points]
        if name == "clean":
            axes.axhline(values[0], color="black", linewidth=0.8, linestyle="--", zorder=1)
        style = _curve_style(points[0], list(curves))
        axes.plot(list(map(_place, points)), values, markersize=5, linewidth=1.4, **style)
        of_fifths = [panel.shuffled(row) for row in points if isinstance(row, FifthRow)]
        shuffled = [value for value in of_fifths if value is not None]
        if shuffled:
            style = {**style, **_SHUFFLED}
            axes.plot(list(map(_place, points)), shuffled, markersize=5, linewidth=1.4, **style)
    ticks = sorted(set(map(_place, rows)))
    is_by_kind = isinstance(rows[0], QualityRow)
    names = ["clean" if is_by_kind and not tick else str(tick) for tick in ticks]
    axes.set_xticks(ticks, names)
    axes.set_xlabel(
        "severity of the degradation" if is_by_kind else "fifth of the inputs, lowest first"
    )
    axes.set_ylabel(panel.label)
    axes.set_title(panel.title, fontsize=10)
    axes.grid(color="0.9", linewidth=0.6)


def _curve(row: _Row) -> str:
    """Returns the name of the curve to which a row belongs: its kind or its measure."""
    return row.measure if isinstance(row, FifthRow) else row.kind


def _place(row: _Row) -> int:
    """Returns the place of a row on the x axis: its fifth or its severity."""
    return row.fifth if isinstance(row, FifthRow) else row.severity or 0


def _curve_style(row: _Row, curves: Sequence[str]) -> dict[str, Any]:
    """Returns the color, marker and line of the curve of a row, given the names of all curves."""
    name = _curve(row)
    if isinstance(row, QualityRow):
        return _style(name)
    index = curves.index(name)
    color = _MEASURE_COLORS[index % len(_MEASURE_COLORS)]
    return {"color": color, "marker": _MARKERS[index % len(_MARKERS)], "linestyle": "-"}


def _draw_legend(axes: "Axes", all_bits: Sequence[BitStatistics], rows: Sequence[_Row]) -> None:
    """Draws the legend in axes of its own, so that it covers nothing."""
    from matplotlib.lines import Line2D

    entries, has_ranges = [], any(bits.least < bits.most for bits in all_bits)
    if any(not _differing_kinds(bits) for bits in all_bits):
        label = "mean over all inputs" if has_ranges else "all inputs"
        entries.append(Line2D([], [], marker="o", color="black", linestyle="", label=label))
    if has_ranges:
        entries.append(Line2D([], [], color="0.7", linewidth=4, label="least to most bits"))
    curves = {_curve(row): row for row in rows}
    for name, row in curves.items():
        label = name.replace("_", " ")
        entries.append(Line2D([], [], label=label, **_curve_style(row, list(curves))))
    if any(isinstance(row, FifthRow) and row.shuffled is not None for row in rows):
        style = {**_SHUFFLED, "color": "black", "marker": "o"}
        entries.append(Line2D([], [], label="with the quality\nof other inputs", **style))
    axes.axis("off")
    axes.legend(handles=entries, loc="upper left", borderaxespad=0, fontsize=8, frameon=False)
