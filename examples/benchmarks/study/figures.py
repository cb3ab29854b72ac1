"""Pictures of the comparison: accuracy against cost, and bits by layer and quality."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from study import results

# The colors of Okabe and Ito, which color-blind people can tell apart, and a marker for each method.
_STYLES = {
    "dqmq": {"color": "#D55E00", "marker": "o", "linewidth": 2.2, "zorder": 5},
    "static": {"color": "#CC79A7", "marker": "s"},
    "hawq": {"color": "#0072B2", "marker": "D"},
    "hawq_free": {"color": "#0072B2", "marker": "D", "linestyle": "--", "markerfacecolor": "white"},
    "hgq2": {"color": "#7F7F00", "marker": "X"},
    "lsq": {"color": "#E69F00", "marker": "^"},
    "pact": {"color": "#56B4E9", "marker": "v"},
    "dorefa": {"color": "#009E73", "marker": "P"},
}
_LEVELS = {"float": ("black", "--"), "tfmot": ("0.45", ":")}
_PANELS = {
    "a": "test (a): kinds of training, severities 1 to 5",
    "d": "test (d): half clean, half severity 5",
}
# Points further below the best are cut off, because they would press all others together.
_SPAN = 12.0
_BAND = 0.2
_ROW_INCHES = 0.19
# Smaller differences in bits round to zero.
_SHOWN = 0.05


def accuracy(found, path):
    """Draws accuracy against mean bit-width, with a column of panels for each network.

    Args:
        found: The `Results`.
        path: File to write.

    Returns:
        The `matplotlib.figure.Figure`.
    """
    figure = Figure(figsize=(11.5, 8.4), layout="constrained")
    panels = figure.subplots(len(_PANELS), len(results.NETWORKS), squeeze=False)
    for row, test in zip(panels, _PANELS):
        for axes, network in zip(row, results.NETWORKS):
            _draw_accuracy(axes, found, network, test)
    figure.legend(handles=_entries(found), loc="outside right center", frameon=False)
    figure.suptitle(
        "Accuracy against cost\nmeans over seeds ± a standard error; lines join the best of each budget",
        fontsize=12,
    )
    figure.savefig(path, dpi=150)
    return figure


def bits(found, path):
    """Draws DQMQ's mean bits at its lowest budget, for each decision point and kind of degradation.

    The left column shows the bits, the right one their difference from the bits of clean images.

    Args:
        found: The `Results`.
        path: File to write.

    Returns:
        The `matplotlib.figure.Figure`.
    """
    maps = {network: _lowest(found, network) for network in results.NETWORKS}
    heights = [2.2 + _ROW_INCHES * (len(m[2]) if m else 0) for m in maps.values()]
    figure = Figure(figsize=(12.5, sum(heights)), layout="constrained")
    places = figure.subfigures(len(maps), 1, height_ratios=heights)
    for place, (network, found_map) in zip(places, maps.items()):
        if found_map:
            budget, *content, seeds = found_map
            of = f"{seeds} seeds" if seeds > 1 else "1 seed"
            title = f"DQMQ at a budget of {budget:g} mean bits, mean of {of}"
            place.suptitle(f"{results.NETWORKS[network]}: {title}", fontsize=12)
            _draw_maps(place, *content)
        else:
            place.suptitle(f"{results.NETWORKS[network]}: not run", fontsize=12)
    figure.savefig(path, dpi=150)
    return figure


def _entries(found):
    """Returns the entries of the legend: the methods that have runs."""
    names, known = results.METHODS, {c.method for c in found.cells(ablation=None)}
    entries = [
        Line2D([], [], **style, label=names[m]) for m, style in _STYLES.items() if m in known
    ]
    if found.cells(ablation=results.SAME_TRAINING):
        look = {"color": "0.4", "linestyle": "", "marker": "o", "markerfacecolor": "white"}
        entries.append(Line2D([], [], **look, label="hollow: trained as DQMQ"))
    for method, (color, line) in _LEVELS.items():
        if method in known:
            label = "float, not quantized" if method == "float" else f"{names[method]}, 8 bits"
            entries.append(Line2D([], [], color=color, linestyle=line, label=label))
    return entries


def _draw_accuracy(axes, found, network, test):
    heights = []
    for method, style in _STYLES.items():
        cells = [
            cell
            for budget in results.MEAN_BITS
            for cell in found.rows(network, budget)
            if cell.method == method
        ]
        heights += _draw_method(axes, found, cells, test, {"label": method, **style})
    for method, (color, line) in _LEVELS.items():
        level = found.estimate(results.Cell(network, method), results.accuracy, test)
        if level is not None:
            heights.append(level.mean)
            axes.axhline(level.mean, color=color, linestyle=line, linewidth=1.3, zorder=1)
            if level.error:
                low, high = level.mean - level.error, level.mean + level.error
                axes.axhspan(low, high, color=color, alpha=_BAND, linewidth=0, zorder=0)
    if heights:
        top = max(heights)
        floor = max(min(heights), top - _SPAN)
        pad = 0.06 * (top - floor) + 0.1
        axes.set_ylim(floor - pad, top + pad)
        _name_hidden(axes, found, network, test, floor)
    else:
        axes.text(0.5, 0.5, "not run", ha="center", va="center", transform=axes.transAxes)
    axes.set_title(f"{results.NETWORKS[network]}, {_PANELS[test]}", fontsize=10)
    axes.set_xlabel("mean bit-width (bits): root of bit operations per MAC", fontsize=9)
    axes.set_ylabel("top-1 accuracy (%)", fontsize=9)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_method(axes, found, cells, test, style):
    """Draws the points of all cells and a line through the best at each budget.

    Returns:
        The accuracies of the points.
    """
    best, heights = {}, []
    for cell in cells:
        height = found.estimate(cell, results.accuracy, test)
        width = found.estimate(cell, results.mean_bits, test)
        if height is None or width is None:
            continue
        heights.append(height.mean)
        errors = {"xerr": width.error or None, "yerr": height.error or None}
        look = {**style, "linestyle": "", "markersize": 6, "capsize": 2, "elinewidth": 1}
        if cell.ablation:
            look["markerfacecolor"] = "white"
        axes.errorbar(width.mean, height.mean, **errors, **look)
        point = height.mean, width.mean
        best[cell.budget] = max(best.get(cell.budget, point), point)
    if best:
        ys, xs = zip(*(best[budget] for budget in sorted(best)))
        line = {"linewidth": 1.3, **style, "marker": ""}
        axes.plot(xs, ys, **line)
    return heights


def _name_hidden(axes, found, network, test, floor):
    """Lists the methods that lie below the frame in a corner that has few points."""
    hidden = []
    for budget in results.MEAN_BITS:
        for cell in found.rows(network, budget):
            height = found.estimate(cell, results.accuracy, test)
            if height is not None and height.mean < floor:
                hidden.append(f"{cell.label} {height.mean:.1f} %")
    if hidden:
        axes.text(
            0.98, 0.03, "\n".join(["below this frame:", *hidden]), transform=axes.transAxes,
            fontsize=7.5, ha="right", va="bottom", bbox={"color": "white", "pad": 2}, zorder=6,
        )  # fmt: skip


def _lowest(found, network):
    """Returns DQMQ's bits at its lowest budget, or None if it has no runs.

    Returns:
        `(budget, kinds, points, bits, number of seeds)`; see `Results.bits_by_kind`.
    """
    for cell in found.cells(
        network=network, method="dqmq", kind="mean_bit_width", ablation=None
    ):  # fmt: skip
        content = found.bits_by_kind(cell)
        if content:
            return cell.budget, *content
    return None


def _draw_maps(place, kinds, points, bits):
    """Draws two maps, each with the activations above the weights."""
    split = sum(":" not in point for point in points)
    parts = [
        part
        for part in (("activations", slice(0, split)), ("weights", slice(split, None)))
        if points[part[1]]
    ]
    ratios = [len(points[rows]) for _, rows in parts]
    panels = place.subplots(len(parts), 2, height_ratios=ratios, squeeze=False, sharex=True)
    change = bits - bits[:, :1]
    limit = max(0.5, float(np.abs(change).max()))
    columns = (
        ("mean bits", bits, {"cmap": "YlGnBu", "vmin": 2, "vmax": 8}, "{:.1f}"),
        ("difference from clean images, bits", change,
         {"cmap": "PuOr_r", "vmin": -limit, "vmax": limit}, "{:+.1f}"),
    )  # fmt: skip
    for number, (title, values, look, form) in enumerate(columns):
        column = panels[:, number]
        for axes, (name, rows) in zip(column, parts):
            image = axes.imshow(values[rows], aspect="auto", interpolation="nearest", **look)
            _write_values(axes, values[rows], image, form)
            if number and np.abs(values[rows]).max() < _SHOWN:
                axes.text(
                    0.5, 0.5, "the same for every kind", ha="center", transform=axes.transAxes
                )
            axes.tick_params(length=0)
            if number == 0:
                axes.set_yticks(range(len(points[rows])), points[rows], fontsize=7)
                axes.set_ylabel(name, fontsize=10)
            else:
                axes.set_yticks([])
        column[0].set_title(title, fontsize=10)
        names = [kind.replace("_", " ") for kind in kinds]
        column[-1].set_xticks(range(len(kinds)), names, rotation=40, ha="right", fontsize=8)
        place.colorbar(image, ax=list(column), label="bits", fraction=0.05, pad=0.02)


def _write_values(axes, values, image, form):
    """Writes each value into its cell, except differences that round to zero."""
    for (row, column), value in np.ndenumerate(values):
        text = form.format(value)
        if abs(value) >= _SHOWN:
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            axes.text(column, row, text, ha="center", va="center", fontsize=6,
                      color="white" if dark else "black")  # fmt: skip
