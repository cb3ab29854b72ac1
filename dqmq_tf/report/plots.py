"""The figure of a `Summary`: bits per layer, and accuracy and cost by quality."""

import textwrap

from dqmq_tf.quality.degradations import DEGRADATIONS
from dqmq_tf.report import tables

# Okabe and Ito's colours, told apart by the colour-blind: one for each family of degradations, a
# mark for each kind in it.
_COLOURS = {
    "noise": "#D55E00",
    "blur": "#0072B2",
    "resolution": "#009E73",
    "photometric": "#CC79A7",
}
_MARKS = ("o", "s", "^", "D")
_LINES = ("-", "--", ":", "-.")
_ROW_INCHES = 0.23


def plot_summary(summary, path=None):
    """Draws bits per layer and, where kinds are known, accuracy and cost by kind and severity.

    Args:
        summary: A `dqmq_tf.Summary`.
        path: File to write; its ending gives the format. None for none.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "`plot` needs matplotlib: pip install 'dqmq_tf[plot]'. `print(summary)` does without."
        ) from error
    decided = {row.name for row in summary.activations}
    columns = [("Weight bits", [row.bits for row in summary.layers])]
    if decided:
        inputs = [row.input_bits if row.input in decided else None for row in summary.layers]
        columns.append(("Bits of the layer's input", inputs))
    kinds = [row for row in summary.qualities if row.severity is not None]
    panels = _quality_panels(summary, kinds)
    differing = max(len(_differing(bits)) for _, shown in columns for bits in shown)
    row_inches = _ROW_INCHES + 0.01 * differing
    height = max(row_inches * len(summary.layers) + 1.9, 1.2 + 2.9 * len(panels), 4.2)
    widths = [3.6] * len(columns) + [4.6] * bool(panels) + [1.9]
    figure = Figure(figsize=(sum(widths) + 2.0, height), layout="constrained")
    grid = figure.add_gridspec(1, len(widths), width_ratios=widths)
    axes = None
    for number, (title, bits) in enumerate(columns):
        axes = figure.add_subplot(grid[0, number], sharey=axes)
        _draw_bits(axes, title, bits, tables.layer_labels(summary) if number == 0 else None)
    if panels:
        # Curves keep their proportions beside a long list of layers.
        rest = max(height - 1.2 - 3.4 * len(panels), 0.01)
        heights = [3.4] * len(panels) + [rest]
        cells = grid[0, -2].subgridspec(len(heights), 1, height_ratios=heights)
        for number, panel in enumerate(panels):
            _draw_quality(figure.add_subplot(cells[number, 0]), kinds, *panel)
    drawn = [found for _, bits in columns for found in bits if found]
    _draw_legend(figure.add_subplot(grid[0, -1]), drawn, kinds)
    lines = [textwrap.fill(line, int(10 * figure.get_figwidth())) for line in _title(summary)]
    figure.suptitle("\n".join(lines), fontsize=11)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _title(summary):
    """The two lines above the figure."""
    kind, result = summary.budget.kind, ""
    if summary.qualities:
        last = summary.qualities[-1]
        if last.accuracy is not None:
            result = f", accuracy {100 * last.accuracy:.1f} % on {last.samples:,} inputs"
        elif last.loss is not None:
            result = f", loss {last.loss:.4g} on {last.samples:,} inputs"
    limit = tables.budget_number(summary.budget.value, kind)
    cost = f"{kind} {tables.budget_number(summary.cost, kind)}, budget {limit}"
    state = f"{summary.target}, {summary.phase}; {tables.meaning(summary)}"
    return f"{summary.model}: {cost}{result}", state


def _style(kind):
    """Colour, mark and line of a kind of degradation."""
    if kind == "clean":
        return {"color": "black", "marker": "*", "linestyle": "--"}
    family = DEGRADATIONS[kind].__module__.rsplit(".", 1)[-1]
    place = [k for k, f in DEGRADATIONS.items() if f.__module__.endswith(f".{family}")].index(kind)
    return {"color": _COLOURS[family], "marker": _MARKS[place], "linestyle": _LINES[place]}


def _draw_bits(axes, title, bits, labels):
    """One row per layer: the range over the inputs, and the mean, of each kind if they differ."""
    for row, found in enumerate(bits):
        if row % 2:
            axes.axhspan(row - 0.5, row + 0.5, color="0.95", linewidth=0, zorder=0)
        if found is None:
            continue
        if found.least < found.most:
            axes.plot([found.least, found.most], [row, row], color="0.7", linewidth=4, zorder=1,
                      solid_capstyle="butt")  # fmt: skip
        kinds = _differing(found)
        for place, (kind, mean) in enumerate(kinds.items()):
            offset = 0.7 * ((place + 0.5) / len(kinds) - 0.5)
            look = {**_style(kind), "linestyle": ""}
            axes.plot(mean, row + offset, markersize=4, zorder=3, **look)
        if not kinds:
            axes.plot(found.mean, row, "o", color="black", markersize=6, zorder=3)
    axes.set_title(title, fontsize=10)
    shown = [found for found in bits if found is not None]
    low, high = min(b.least for b in shown), max(b.most for b in shown)
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


def _differing(bits):
    """`{kind: mean bits}` where the kinds differ, else empty."""
    kinds = bits.by_kind if bits is not None else {}
    return kinds if len({round(mean, 2) for mean in kinds.values()}) > 1 else {}


def _quality_panels(summary, kinds):
    """`(title, y label, value of a row)` of what is worth a panel."""
    if not kinds:
        return []
    panels, counts = [], sorted({row.samples for row in kinds})
    ends = dict.fromkeys((counts[0], counts[-1]))
    points = f"{' to '.join(f'{n:,}' for n in ends)} inputs per point"
    if tables.metric(summary) == "accuracy":
        panels.append((f"Accuracy, {points}", "top-1 accuracy (%)", lambda row: 100 * row.accuracy))
    elif tables.metric(summary) == "loss":
        panels.append((f"Loss, {points}", "loss", lambda row: row.loss))
    work = [row.bit_ops for row in kinds]
    if max(work) > 1.0001 * min(work):
        units = ((1e9, " (billions)"), (1e6, " (millions)"), (1e3, " (thousands)"))
        unit, name = next((u for u in units if max(work) >= u[0]), (1, ""))
        label = f"BitOPs per input{name}"
        panels.append(("Cost of the bits chosen", label, lambda row: row.bit_ops / unit))
    elif panels:
        title, *drawn = panels[0]
        panels[0] = (f"{title}\nall inputs cost the same: {tables.si(work[0])} BitOPs", *drawn)
    return panels


def _draw_quality(axes, rows, title, label, value):
    for kind in dict.fromkeys(row.kind for row in rows):
        found = [row for row in rows if row.kind == kind]
        if kind == "clean":
            axes.axhline(value(found[0]), color="black", linewidth=0.8, linestyle="--", zorder=1)
        places, values = [row.severity for row in found], [value(row) for row in found]
        axes.plot(places, values, markersize=5, linewidth=1.4, **_style(kind))
    severities = sorted({row.severity for row in rows})
    axes.set_xticks(severities, [str(s) if s else "clean" for s in severities])
    axes.set_xlabel("severity of the degradation")
    axes.set_ylabel(label)
    axes.set_title(title, fontsize=10)
    axes.grid(color="0.9", linewidth=0.6)


def _draw_legend(axes, drawn, rows):
    """Fills axes of its own, so that the legend covers nothing."""
    from matplotlib.lines import Line2D

    entries, ranges = [], any(found.least < found.most for found in drawn)
    if any(not _differing(found) for found in drawn):
        label = "mean over all inputs" if ranges else "all inputs"
        entries.append(Line2D([], [], marker="o", color="black", linestyle="", label=label))
    if ranges:
        entries.append(Line2D([], [], color="0.7", linewidth=4, label="least to most bits"))
    for kind in dict.fromkeys(row.kind for row in rows):
        entries.append(Line2D([], [], label=kind.replace("_", " "), **_style(kind)))
    axes.axis("off")
    axes.legend(handles=entries, loc="upper left", borderaxespad=0, fontsize=8, frameon=False)
