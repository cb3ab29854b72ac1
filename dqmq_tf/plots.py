"""How a `Summary` is shown: tables for the terminal, and a figure."""

import math
import textwrap

import rich.box
import rich.table
import rich.text

from dqmq_tf.quality.degradations import DEGRADATIONS

# A mark for nought, so that the place of each candidate is seen and no space is trimmed.
_BARS = "·▁▂▃▄▅▆▇█"
_PHASES = {
    "search": "the policy still moves; these are the likeliest bits",
    "settled": "weight bits are fixed to the budget",
    "frozen": "all bits are fixed",
}
_UNITS = {
    "size_bytes": "bytes stored",
    "download_bytes": "bytes under deflate",
    "bit_ops": "BitOPs per input",
    "mean_bit_width": "bits, the root of weight bits x input bits averaged over MACs",
}
_SOURCES = {
    "data": "means over the {:,} inputs of the data",
    "training": "means over the last {:,} inputs of training",
    "none": "at a neutral quality, as nothing was trained",
}


def tables(summary, ascii_only=False):
    """Yields what rich shows of a `Summary`.

    Args:
        summary: A `dqmq_tf.report.Summary`.
        ascii_only: Whether the terminal shows nothing beyond ASCII: histograms are then tenths.
    """
    yield _head(summary)
    yield ""
    yield _layers(summary, ascii_only)
    if summary.activations:
        yield _activations(summary, ascii_only)
    if summary.qualities:
        yield _qualities(summary)


def meaning(summary):
    """Returns a sentence on what the bits of a `Summary` differ by."""
    groups = "groups of like quality" if summary.phase == "search" else "precision profiles"
    choice = f"{summary.profiles} {groups}, of which the policy picks one for each input"
    if summary.per == "static":
        return "static: the same bits for every input"
    if summary.per == "profile":
        return f"per profile: {choice}"
    weights = choice if summary.profiles > 1 else "the same for every input"
    return f"per sample: activation bits follow each input; weight bits: {weights}"


def _head(summary):
    share = 100 * summary.cost / summary.budget.value
    kind = summary.budget.kind
    cost = (
        f"{_number(summary.cost, kind)} of {_number(summary.budget.value, kind)} {_UNITS[kind]}: "
        f"{share:.1f} % of the budget {kind}"
    )
    if summary.other_bytes is not None:
        cost += f"; {summary.other_bytes:,.0f} of these, an estimate, are not weights"
        if summary.profiles > 1:
            cost += "; the largest profile counts"
    macs = max(summary.total("macs"), 1)
    part = f"{100 * summary.encoder_macs / macs:.2g} %"
    encoder = f"{_si(summary.encoder_macs)} MACs, {part} of the network's"
    if summary.per == "static" and summary.phase != "search":
        encoder += "; not needed any more, as the bits are static"
    head = rich.table.Table.grid(padding=(0, 2))
    for name, value, style in (
        ("model", f"{summary.model}, target {summary.target}", ""),
        ("phase", f"{summary.phase}: {_PHASES[summary.phase]}", ""),
        ("bits", meaning(summary), ""),
        ("cost", cost, "red" if share > 100 else "green"),
        ("encoder", encoder, ""),
        ("not counted", f"{summary.other_parameters:,} parameters that are not quantized", ""),
    ):
        head.add_row(rich.text.Text(name, style="bold"), rich.text.Text(value, style=style))
    if not summary.deployable:
        note = "activations below 8 bits are simulation only: no runtime runs this target"
        head.add_row("", note)
    return head


def _layers(summary, ascii_only):
    table = _table(
        f"Weights per layer: {_SOURCES[summary.source].format(summary.samples)}",
        "layer", *_spread_head(summary.layers), "bits", "input\nbits", "weights", "bytes",
        "deflated", "MACs", "BitOPs",
    )  # fmt: skip
    labels = layer_labels(summary)
    for label, row in zip(labels, summary.layers):
        table.add_row(
            rich.text.Text(label),
            *_spread(row.distribution, ascii_only),
            _range(row.bits),
            "float" if row.input is None else _range(row.input_bits),
            _si(row.weights),
            f"{row.stored_bytes:,.0f}",
            f"{row.deflated_bytes:,.0f}",
            _si(row.macs),
            _si(row.bit_ops),
        )
    table.add_section()
    sizes = [f"{summary.total(c):,.0f}" for c in ("stored_bytes", "deflated_bytes")]
    counts = [_si(summary.total(c)) for c in ("weights", "macs", "bit_ops")]
    table.add_row("total", *[""] * 4, counts[0], *sizes, *counts[1:], style="bold")
    return table


def _activations(summary, ascii_only):
    head = _spread_head(summary.activations)
    table = _table("Activations that are decided", "made by", *head, "bits")
    for row in summary.activations:
        bars = _spread(row.distribution, ascii_only)
        table.add_row(rich.text.Text(row.name), *bars, _range(row.bits))
    return table


def _qualities(summary):
    score = {"accuracy": "accuracy", "loss": "loss", None: ""}[_metric(summary)]
    table = _table(
        "Inputs by quality: bits of weights are means over weights, of activations over MACs",
        "kind", "severity", "samples", *filter(None, [score]), "weight bits", "activation bits",
        "BitOPs",
    )  # fmt: skip
    before = None
    for row in summary.qualities:
        if before is not None and row.kind != before:
            table.add_section()
        scores = []
        if score:
            scores = [f"{row.loss:.4g}" if row.accuracy is None else f"{100 * row.accuracy:.1f} %"]
        table.add_row(
            "" if row.kind == before else row.kind,
            str(row.severity or ""),
            f"{row.samples:,}",
            *scores,
            f"{row.weight_bits:.2f}",
            f"{row.activation_bits:.2f}",
            _si(row.bit_ops),
            style="bold" if row.severity is None else None,
        )
        before = row.kind
    return table


def layer_labels(summary):
    """Returns a short name per layer: its path, and the variable where a layer has several."""
    sites = [row.name.rsplit(":", 1)[0] for row in summary.layers]
    return [s if sites.count(s) == 1 else row.name for s, row in zip(sites, summary.layers)]


def _table(title, *columns):
    table = rich.table.Table(
        title=rich.text.Text(title, style="bold"),
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _spread_head(rows):
    """Column names of `_spread`; the candidates are named where all rows have the same."""
    candidates = {row.distribution.bit_widths for row in rows}
    ends = [f"{bits[0]}-{bits[-1]}" for bits in candidates]
    return "m, sigma", f"p({ends[0] if len(ends) == 1 else 'bits'})"


def _spread(distribution, ascii_only):
    marks = "0123456789" if ascii_only else _BARS
    bars = "".join(marks[round(p * (len(marks) - 1))] for p in distribution.probabilities)
    numbers = f"{distribution.mean:.1f}, {distribution.sigma:.1f}"
    return numbers, rich.text.Text(bars, style="cyan")


def _range(bits):
    if bits.least == bits.most:
        return str(bits.least)
    return f"{bits.mean:.1f} ({bits.least}-{bits.most})"


def _metric(summary):
    row = summary.qualities[-1]
    return "accuracy" if row.accuracy is not None else "loss" if row.loss is not None else None


def _number(value, kind):
    return f"{value:.3f}" if kind == "mean_bit_width" else f"{value:,.0f}"


def _si(value):
    """Three digits and a prefix: `1.23M`."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            scaled = value / size
            return f"{scaled:.{max(0, 2 - int(math.log10(scaled)))}f}{prefix}"
    return f"{value:.0f}"


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
        summary: A `dqmq_tf.report.Summary`.
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
        _draw_bits(axes, title, bits, layer_labels(summary) if number == 0 else None)
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
    limit = _number(summary.budget.value, kind)
    cost = f"{kind} {_number(summary.cost, kind)}, budget {limit}"
    state = f"{summary.target}, {summary.phase}; {meaning(summary)}"
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
    if _metric(summary) == "accuracy":
        panels.append((f"Accuracy, {points}", "top-1 accuracy (%)", lambda row: 100 * row.accuracy))
    elif _metric(summary) == "loss":
        panels.append((f"Loss, {points}", "loss", lambda row: row.loss))
    work = [row.bit_ops for row in kinds]
    if max(work) > 1.0001 * min(work):
        units = ((1e9, " (billions)"), (1e6, " (millions)"), (1e3, " (thousands)"))
        unit, name = next((u for u in units if max(work) >= u[0]), (1, ""))
        label = f"BitOPs per input{name}"
        panels.append(("Cost of the bits chosen", label, lambda row: row.bit_ops / unit))
    elif panels:
        title, *drawn = panels[0]
        panels[0] = (f"{title}\nall inputs cost the same: {_si(work[0])} BitOPs", *drawn)
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
