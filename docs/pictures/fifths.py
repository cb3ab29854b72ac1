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
    ("nothing", 100_000, "int8", "#9aa5b1"),
    ("nothing", 30_000, "mixed precision", "#3f7cac"),
    ("exposure", 30_000, "mixed precision\nbehind Exposure", "#c8553d"),
)


def groups() -> list[tuple[str, str, np.ndarray]]:
    """Returns `(label, color, accuracies [seeds, fifths] in %)` of each group of files."""
    lines = (_RECORDS / "exposure.jsonl").read_text(encoding="utf-8").splitlines()
    records = [run for run in map(json.loads, lines) if run["learning_rate"] == _RATE]
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
        x = places + 0.27 * (number - 1)
        mean = accuracies.mean(axis=0)
        axes.bar(x, mean, 0.25, color=color, label=label)
        for seed in accuracies:
            axes.plot(x, seed, ".", color="#222", markersize=3)
        for place, value in zip(x, mean):
            axes.text(place, 90.3, f"{value:.1f}", ha="center", fontsize=7, color="white")
    axes.set_xticks(places, _FIFTHS)
    axes.set(xlabel="fifth of the images by quality", ylabel="accuracy in %", ylim=(90, 100))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=3)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    draw(pathlib.Path(__file__).with_name("fifths.png"))
