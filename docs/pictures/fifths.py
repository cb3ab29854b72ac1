"""Draws `fifths.png`: accuracy of files on traffic signs, by fifths of the quality of the images.

    python docs/pictures/fifths.py

The figures are those that `examples/benchmarks/exposure.py` recorded at a learning rate of 0.004.
"""

import json
import pathlib

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

_RECORDS = pathlib.Path(__file__).parents[2] / "examples" / "benchmarks" / "results"
_RATE = 0.004
_FIFTHS = ("worst", "2nd", "3rd", "4th", "best")
# Method and bytes of the budget, label, and color of each group of files.
_GROUPS = (
    ("nothing", 100_000, "8-bit weights", "#9aa5b1"),
    ("nothing", 30_000, "mixed precision", "#3f7cac"),
    ("exposure", 30_000, "mixed precision behind Exposure", "#c8553d"),
)


def groups() -> list[tuple[str, str, np.ndarray]]:
    """Returns `(label, color, accuracies [seeds, fifths] in %)` of each group of files."""
    lines = (_RECORDS / "exposure.jsonl").read_text(encoding="utf-8").splitlines()
    settings = {"network": "resnet8", "learning_rate": _RATE}.items()
    records = [run for run in map(json.loads, lines) if settings <= run.items()]
    found = []
    for method, size, label, color in _GROUPS:
        runs = [run for run in records if (run["method"], run["bytes"]) == (method, size)]
        kilobytes = np.mean([run["download_bytes"] for run in runs]) / 1000
        accuracies = 100 * np.array([run["file"]["fifths"] for run in runs])
        found.append((f"{label}, {kilobytes:.0f} kB", color, accuracies))
    return found


def draw(path: pathlib.Path) -> None:
    """Draws the picture into a PNG file."""
    figure, axes = plt.subplots(figsize=(8, 3.2))
    places = np.arange(len(_FIFTHS))
    for number, (label, color, accuracies) in enumerate(groups()):
        x = places + 0.08 * (number - 1)
        axes.plot(x, accuracies.mean(axis=0), "o-", color=color, label=label, linewidth=1.8)
        for seed in accuracies:
            axes.plot(x, seed, ".", color=color, markersize=4, alpha=0.6)
    axes.set_xticks(places, _FIFTHS)
    axes.set(xlabel="fifth of the images by quality", ylabel="accuracy in %")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    draw(pathlib.Path(__file__).with_name("fifths.png"))
