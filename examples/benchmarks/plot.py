"""Tables and pictures of what `mixed_quality.py` found.

    python examples/benchmarks/plot.py

Prints the tables, writes them as Markdown, and draws two pictures: accuracy against cost, and which
layers of DQMQ have which bits for which qualities. What has not been run yet is shown as "-".
"""

import json
import os
import pathlib

import rich.console
from absl import app, flags
from study import pictures, results, tables

_RESULTS = flags.DEFINE_string(
    "results",
    "examples/benchmarks/results/mixed_quality.jsonl",
    "JSON lines that `mixed_quality.py` wrote.",
)
_STEPS = flags.DEFINE_integer("steps", 600, "Training steps of the runs that count.", lower_bound=1)
_MARKDOWN = flags.DEFINE_string(
    "markdown", "examples/benchmarks/results/mixed_quality.md", "File for the tables."
)
_OUTPUT = flags.DEFINE_string("output", "examples/benchmarks/results", "Folder for the pictures.")

_WIDTH = 170
_TESTS = """\
Test (a): degradations of the kinds of training, severities 1 to 5; (b): other kinds; (c): clean
images; (d): half clean, half of severity 5. Figures are means over seeds ± their standard error; one
seed has no error. "-": not run."""


def markdown(found, pictured):
    """Returns the document of all tables.

    Args:
        found: `Results`.
        pictured: `{title: address}` of the pictures.
    """
    images = [f"![{title}]({address})\n" for title, address in pictured.items()]
    sections = [table.markdown() for table in tables.tables(found)]
    head = f"# Images of mixed quality at equal cost\n\n{_TESTS} {steps_note(found)}\n"
    return "\n".join([head, *images, *sections])


def steps_note(found):
    """Returns a sentence on the runs that count."""
    rest = f"; {found.left_out} runs of other steps are left out" if found.left_out else ""
    return f"All runs have {found.steps:,} steps{rest}."


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    path = pathlib.Path(_RESULTS.value)
    if not path.exists():
        raise app.UsageError(
            f"--results={path}: there is no such file; `mixed_quality.py` writes it."
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    found = results.Results([json.loads(line) for line in lines], _STEPS.value)
    console = rich.console.Console(width=_WIDTH)
    console.print(_TESTS, steps_note(found), "", highlight=False)
    for table in tables.tables(found):
        console.print(table.rich())
        for note in table.notes:
            console.print(note, style="dim", highlight=False)
        console.print()
    folder, document = pathlib.Path(_OUTPUT.value), pathlib.Path(_MARKDOWN.value)
    folder.mkdir(parents=True, exist_ok=True)
    document.parent.mkdir(parents=True, exist_ok=True)
    drawn = {
        "Accuracy against cost": folder / "mixed_quality_accuracy.png",
        "Bits by layer and quality": folder / "mixed_quality_bits.png",
    }
    for draw, picture in zip((pictures.accuracy, pictures.bits), drawn.values()):
        draw(found, picture)
    addresses = {
        title: pathlib.Path(os.path.relpath(picture, document.parent)).as_posix()
        for title, picture in drawn.items()
    }
    document.write_text(markdown(found, addresses), encoding="utf-8")
    console.print(f"Written: {', '.join(map(str, (document, *drawn.values())))}", highlight=False)


if __name__ == "__main__":
    app.run(main)
