"""Makes tables and pictures of the results of `mixed_quality.py`.

    python examples/benchmarks/plot.py

The script prints the tables, writes them as Markdown, and draws two pictures: accuracy against cost, and
the bits that DQMQ gives to each layer for each kind of degradation. Runs that are missing are shown as
"-".
"""

import json
import os
import pathlib

import rich.console
from absl import app, flags
from study import document, figures, result_tables, results

_RESULTS = flags.DEFINE_string(
    "results",
    "examples/benchmarks/results/mixed_quality.jsonl",
    "JSON lines that `mixed_quality.py` wrote.",
)
_STEPS = flags.DEFINE_integer(
    "steps", 600, "Use the runs with this number of training steps.", lower_bound=1
)
_MARKDOWN = flags.DEFINE_string(
    "markdown", "examples/benchmarks/results/mixed_quality.md", "File for the tables."
)
_OUTPUT = flags.DEFINE_string("output", "examples/benchmarks/results", "Folder for the pictures.")

_WIDTH = 170


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    path = pathlib.Path(_RESULTS.value)
    if not path.exists():
        raise app.UsageError(
            f"--results={path} does not exist. Run `mixed_quality.py` first: it writes the file."
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    found = results.Results([json.loads(line) for line in lines], _STEPS.value)
    console = rich.console.Console(width=_WIDTH)
    console.print(document.TESTS, document.steps_note(found), "", highlight=False)
    for table in result_tables.tables(found):
        console.print(table.rich())
        for note in table.notes:
            console.print(note, style="dim", highlight=False)
        console.print()
    folder, text = pathlib.Path(_OUTPUT.value), pathlib.Path(_MARKDOWN.value)
    folder.mkdir(parents=True, exist_ok=True)
    text.parent.mkdir(parents=True, exist_ok=True)
    drawn = {
        "Accuracy against cost": folder / "mixed_quality_accuracy.png",
        "Bits by layer and quality": folder / "mixed_quality_bits.png",
    }
    for draw, picture in zip((figures.accuracy, figures.bits), drawn.values()):
        draw(found, picture)
    addresses = {
        title: pathlib.Path(os.path.relpath(picture, text.parent)).as_posix()
        for title, picture in drawn.items()
    }
    text.write_text(document.markdown(found, addresses), encoding="utf-8")
    console.print(f"Written: {', '.join(map(str, (text, *drawn.values())))}", highlight=False)


if __name__ == "__main__":
    app.run(main)
