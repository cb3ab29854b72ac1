"""Draws `idea.png`: how the quality of an image leads to bits per layer and to a TFLite file.

    python docs/pictures/idea.py

The bit-widths are an illustration, not a measurement.
"""

import pathlib

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

_CLEAN, _DARK, _NOISY = "#3f7cac", "#5b4b8a", "#c8553d"
_BITS = {"clean": (4, 3, 3, 5), "dark": (7, 5, 4, 6), "noisy": (5, 4, 3, 5)}
_LAYERS = ("conv 1", "conv 2", "conv 3", "dense")


def _images() -> dict[str, np.ndarray]:
    """Returns one drawn scene in three qualities, as gray images with values from 0 to 1."""
    rows, columns = np.mgrid[0:64, 0:64] / 63
    scene = 0.85 - 0.35 * rows
    scene[(columns - 0.7) ** 2 + (rows - 0.28) ** 2 < 0.02] = 1.0
    scene[rows > 0.95 - 0.45 * np.exp(-(((columns - 0.35) / 0.25) ** 2))] = 0.25
    noise = np.random.default_rng(0).normal(0, 0.22, scene.shape)
    return {"clean": scene, "dark": 0.22 * scene, "noisy": np.clip(scene + noise, 0, 1)}


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str) -> None:
    style = "round,pad=0.02,rounding_size=0.12"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, fc="#eef2f5", ec="#444", lw=1.2)
    )
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color="#444", lw=1.2)
    )


def draw(path: pathlib.Path) -> None:
    """Draws the picture into a PNG file."""
    figure, axes = plt.subplots(figsize=(10, 3.6))
    axes.set(xlim=(0, 14), ylim=(0, 5))
    axes.axis("off")
    colors = dict(zip(_BITS, (_CLEAN, _DARK, _NOISY)))
    for index, (name, image) in enumerate(_images().items()):
        top = 4.4 - 1.45 * index
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=(0.2, 1.4, top - 1.2, top))
        axes.text(1.5, top - 0.6, name, va="center", fontsize=9, color=colors[name])
        _arrow(axes, (2.25, top - 0.6), (3.0, 2.35))
    _box(axes, 3.05, 1.65, 1.9, 1.4, "encoder\n$\\to$ quality\nembedding $z$")
    _arrow(axes, (5.0, 2.35), (5.7, 2.35))
    _box(axes, 5.75, 1.65, 1.5, 1.4, "policy\nwithin a\nbudget")
    _arrow(axes, (7.3, 2.35), (8.0, 2.35))
    for layer, label in enumerate(_LAYERS):
        for index, (name, bits) in enumerate(_BITS.items()):
            x = 8.2 + 0.85 * layer + 0.2 * index
            axes.bar(x, bits[layer] * 0.33, width=0.18, bottom=1.1, color=colors[name])
            axes.text(x, 1.15 + bits[layer] * 0.33, bits[layer], ha="center", fontsize=7)
        axes.text(8.4 + 0.85 * layer, 0.75, label, ha="center", fontsize=8)
    _arrow(axes, (11.65, 2.35), (12.3, 2.35))
    _box(axes, 12.35, 1.65, 1.4, 1.4, "verified\n.tflite\nfile")
    for x, title in (
        (1.1, "image quality"),
        (4.0, "what sees it"),
        (6.5, "what decides"),
        (9.8, "bits per layer"),
        (13.05, "what you ship"),
    ):
        axes.text(x, 4.75, title, ha="center", fontsize=10, fontweight="bold")
    axes.set_aspect("auto")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    draw(pathlib.Path(__file__).with_name("idea.png"))
