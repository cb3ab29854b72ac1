"""How a terminal shows a `Summary`: tables, and the words and figures in them."""

import math

import rich.text

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
        summary: A `dqmq_tf.Summary`.
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
    if summary.bits_vary_by == "static":
        return "static: the same bits for every input"
    if summary.bits_vary_by == "profile":
        return f"per profile: {choice}"
    weights = choice if summary.profiles > 1 else "the same for every input"
    return f"per sample: activation bits follow each input; weight bits: {weights}"


def _head(summary):
    share = 100 * summary.cost / summary.budget.value
    kind = summary.budget.kind
    reached, limit = (budget_number(v, kind) for v in (summary.cost, summary.budget.value))
    cost = f"{reached} of {limit} {_UNITS[kind]}: {share:.1f} % of the budget {kind}"
    if summary.other_bytes is not None:
        cost += f"; {summary.other_bytes:,.0f} of these, an estimate, are not weights"
        if summary.profiles > 1:
            cost += "; the largest profile counts"
    macs = max(summary.total("macs"), 1)
    part = f"{100 * summary.encoder_macs / macs:.2g} %"
    encoder = f"{si(summary.encoder_macs)} MACs, {part} of the network's"
    if summary.bits_vary_by == "static" and summary.phase != "search":
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
            si(row.weights),
            f"{row.stored_bytes:,.0f}",
            f"{row.download_bytes:,.0f}",
            si(row.macs),
            si(row.bit_ops),
        )
    table.add_section()
    sizes = [f"{summary.total(c):,.0f}" for c in ("stored_bytes", "download_bytes")]
    counts = [si(summary.total(c)) for c in ("weights", "macs", "bit_ops")]
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
    score = {"accuracy": "accuracy", "loss": "loss", None: ""}[metric(summary)]
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
            si(row.bit_ops),
            style="bold" if row.severity is None else None,
        )
        before = row.kind
    return table


def layer_labels(summary):
    """Returns a short name per layer: its path, and the variable where a layer has several."""
    paths = [row.name.rsplit(":", 1)[0] for row in summary.layers]
    return [s if paths.count(s) == 1 else row.name for s, row in zip(paths, summary.layers)]


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


def metric(summary):
    """Returns what the quality rows hold: `"accuracy"`, `"loss"` or None."""
    row = summary.qualities[-1]
    return "accuracy" if row.accuracy is not None else "loss" if row.loss is not None else None


def budget_number(value, kind):
    """Returns the text of a cost in the unit of a kind of budget."""
    return f"{value:.3f}" if kind == "mean_bit_width" else f"{value:,.0f}"


def si(value):
    """Returns three digits and a prefix: `1.23M`."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            scaled = value / size
            return f"{scaled:.{max(0, 2 - int(math.log10(scaled)))}f}{prefix}"
    return f"{value:.0f}"
