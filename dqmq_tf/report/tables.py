"""Shows a `Summary` on a terminal: its tables, and the words and numbers in them."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import rich.table
import rich.text
from rich.console import RenderableType

from dqmq_tf.report.rows import ActivationRow, BitStatistics, Distribution, LayerRow, ScoreRow
from dqmq_tf.report.summary import Summary
from dqmq_tf.terminal import new_table

# Zero has a mark of its own, so that every candidate is visible and no space is trimmed.
_BARS = "·▁▂▃▄▅▆▇█"
_PHASES = {
    "search": "the policy is still learning; these are the most likely bits",
    "settled": "weight bits are fixed to the budget",
    "frozen": "all bits are fixed",
}
_UNITS = {
    "size_bytes": "bytes of flash",
    "download_bytes": "bytes under deflate",
    "vela_flash_bytes": "bytes of constants on the NPU",
    "vela_cycles": "cycles of the NPU",
    "bit_ops": "BitOPs per input",
    "mean_bit_width": "bits, the root of weight bits x input bits averaged over MACs",
}
_MEANS = "weight bits are means over weights, activation bits over MACs"
_SOURCES = {
    "data": "means over the {:,} inputs of the data",
    "training": "means over the last {:,} inputs of training",
    "none": "at a neutral quality, because the model is not trained",
}


def tables(summary: Summary, ascii_only: bool = False) -> Iterator[RenderableType]:
    """Yields the parts of a `Summary` for rich to print.

    Args:
        summary: The summary.
        ascii_only: Whether the terminal shows only ASCII. Histograms are then digits.
    """
    yield _overview(summary)
    yield ""
    yield _layers(summary, ascii_only)
    if summary.activations:
        yield _activations(summary, ascii_only)
    if summary.qualities:
        yield _qualities(summary)
    if summary.fifths:
        yield _fifths(summary)


def meaning(summary: Summary) -> str:
    """Returns a phrase that says what the bits of a `Summary` depend on."""
    groups = "groups of similar quality" if summary.phase == "search" else "precision profiles"
    choice = f"{summary.profiles} {groups}; the policy picks one for each input"
    if summary.bits_vary_by == "static":
        return "static: the same bits for every input"
    if summary.bits_vary_by == "profile":
        return f"per profile: {choice}"
    weights = choice if summary.profiles > 1 else "the same for every input"
    return f"per sample: activation bits follow each input; weight bits: {weights}"


def _overview(summary: Summary) -> rich.table.Table:
    is_over_budget = summary.cost > summary.budget.value
    grid = rich.table.Table.grid(padding=(0, 2))
    for name, value, style in (
        ("model", f"{summary.model}, target {summary.target}", ""),
        ("phase", f"{summary.phase}: {_PHASES[summary.phase]}", ""),
        ("bits", meaning(summary), ""),
        ("follows quality", ", ".join(summary.follows) or "nothing", ""),
        ("cost", _cost(summary), "red" if is_over_budget else "green"),
        ("encoder", _encoder(summary), ""),
        ("not counted", f"{summary.other_parameters:,} parameters that are not quantized", ""),
    ):
        grid.add_row(rich.text.Text(name, style="bold"), rich.text.Text(value, style=style))
    if not summary.deployable:
        grid.add_row("", "activations below 8 bits are simulation only: no runtime supports them")
    return grid


def _cost(summary: Summary) -> str:
    kind, budget = summary.budget.kind, summary.budget.value
    reached, limit = budget_number(summary.cost, kind), budget_number(budget, kind)
    share = 100 * summary.cost / budget
    text = f"{reached} of {limit} {_UNITS[kind]}: {share:.1f} % of the budget {kind}"
    if summary.other_bytes is not None:
        text += f"; about {summary.other_bytes:,.0f} of them are not weights"
        if summary.decoder_bytes:
            file_bytes = summary.cost - summary.decoder_bytes
            text += f"; file {file_bytes:,.0f}, decoder {summary.decoder_bytes:,.0f}"
        if summary.profiles > 1:
            text += "; the largest profile counts"
    return text


def _encoder(summary: Summary) -> str:
    share = 100 * summary.encoder_macs / max(summary.total("macs"), 1)
    text = f"{si(summary.encoder_macs)} MACs, {share:.2g} % of the network's"
    if summary.bits_vary_by == "static" and summary.phase != "search":
        text += "; no longer needed, because the bits are static"
    return text


def _layers(summary: Summary, ascii_only: bool) -> rich.table.Table:
    table = new_table(
        f"Weights per layer: {_SOURCES[summary.source].format(summary.samples)}",
        "layer", *_distribution_head(summary.layers), "bits", "input\nbits", "weights", "bytes",
        "deflated", "MACs", "BitOPs",
    )  # fmt: skip
    for label, row in zip(layer_labels(summary), summary.layers):
        table.add_row(
            rich.text.Text(label),
            *_distribution_cells(row.distribution, ascii_only),
            _bits_cell(row.bits),
            "float" if row.input is None else _bits_cell(row.input_bits),
            si(row.weights),
            f"{row.stored_bytes:,.0f}",
            f"{row.download_bytes:,.0f}",
            si(row.macs),
            si(row.bit_ops),
        )
    table.add_section()
    table.add_row(
        "total", "", "", "", "",
        si(summary.total("weights")),
        f"{summary.total('stored_bytes'):,.0f}",
        f"{summary.total('download_bytes'):,.0f}",
        si(summary.total("macs")),
        si(summary.total("bit_ops")),
        style="bold",
    )  # fmt: skip
    return table


def _activations(summary: Summary, ascii_only: bool) -> rich.table.Table:
    head = _distribution_head(summary.activations)
    table = new_table("Activations whose bits the policy chooses", "produced by", *head, "bits")
    for row in summary.activations:
        cells = _distribution_cells(row.distribution, ascii_only)
        table.add_row(rich.text.Text(row.name), *cells, _bits_cell(row.bits))
    return table


def _qualities(summary: Summary) -> rich.table.Table:
    table = new_table(
        f"Inputs by quality: {_MEANS}", "kind", "severity", *_score_head(summary, "BitOPs")
    )
    previous = None
    for row in summary.qualities:
        if previous is not None and row.kind != previous:
            table.add_section()
        table.add_row(
            "" if row.kind == previous else row.kind,
            str(row.severity or ""),
            *_score_cells(row),
            si(row.bit_ops),
            style="bold" if row.severity is None else None,
        )
        previous = row.kind
    return table


def _fifths(summary: Summary) -> rich.table.Table:
    table = new_table(
        "Fifths of the inputs by measures of quality, lowest first",
        "measure", "fifth", "from", "to", *_score_head(summary),
    )  # fmt: skip
    for row in summary.fifths:
        if row.fifth == 1 and row is not summary.fifths[0]:
            table.add_section()
        table.add_row(
            row.measure if row.fifth == 1 else "",
            str(row.fifth),
            f"{row.least:.3g}",
            f"{row.most:.3g}",
            *_score_cells(row),
        )
    return table


def _score_head(summary: Summary, *more: str) -> tuple[str, ...]:
    """Returns the headings of `_score_cells`."""
    score = metric(summary)
    scores: list[str] = [score] if score else []
    if summary.qualities[-1].shuffled is not None:
        scores.append(f"{score}\nshuffled")
    return ("samples", *scores, "weight\nbits", "activation\nbits", *more)


def _score_cells(row: ScoreRow) -> tuple[str, ...]:
    """Returns the number of samples, the scores, and the mean bits of a group of inputs."""
    scores = []
    if row.accuracy is not None:
        scores.append(f"{100 * row.accuracy:.1f} %")
        if row.shuffled is not None:
            scores.append(f"{100 * row.shuffled:.1f} %")
    elif row.loss is not None:
        scores.append(f"{row.loss:.4g}")
        if row.shuffled is not None:
            scores.append(f"{row.shuffled:.4g}")
    return f"{row.samples:,}", *scores, f"{row.weight_bits:.2f}", f"{row.activation_bits:.2f}"


def layer_labels(summary: Summary) -> list[str]:
    """Returns a short name per layer: its path, with the variable if a layer has several."""
    paths = [row.name.rsplit(":", 1)[0] for row in summary.layers]
    return [
        path if paths.count(path) == 1 else row.name for path, row in zip(paths, summary.layers)
    ]


def _distribution_head(rows: Sequence[LayerRow | ActivationRow]) -> tuple[str, str]:
    """Returns the headings of `_distribution_cells`, with the candidates if all rows share them."""
    candidates = {row.distribution.bit_widths for row in rows}
    ranges = [f"{bits[0]}-{bits[-1]}" for bits in candidates]
    return "m, sigma", f"p({ranges[0] if len(ranges) == 1 else 'bits'})"


def _distribution_cells(distribution: Distribution, ascii_only: bool) -> tuple[str, rich.text.Text]:
    """Returns the mean and width of a distribution, and its histogram."""
    marks = "0123456789" if ascii_only else _BARS
    histogram = "".join(marks[round(p * (len(marks) - 1))] for p in distribution.probabilities)
    numbers = f"{distribution.mean:.1f}, {distribution.sigma:.1f}"
    return numbers, rich.text.Text(histogram, style="cyan")


def _bits_cell(bits: BitStatistics) -> str:
    if bits.least == bits.most:
        return str(bits.least)
    return f"{bits.mean:.1f} ({bits.least}-{bits.most})"


def metric(summary: Summary) -> Literal["accuracy", "loss"] | None:
    """Returns which score the quality rows hold."""
    row = summary.qualities[-1]
    if row.accuracy is not None:
        return "accuracy"
    return None if row.loss is None else "loss"


def budget_number(value: float, kind: str) -> str:
    """Returns a cost as text in the unit of a kind of budget."""
    return f"{value:.3f}" if kind == "mean_bit_width" else f"{value:,.0f}"


def si(value: float) -> str:
    """Returns a number as text with three digits and a prefix, such as `1.23M`."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            scaled = value / size
            return f"{scaled:.{max(0, 2 - int(math.log10(scaled)))}f}{prefix}"
    return f"{value:.0f}"
