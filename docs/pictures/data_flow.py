"""Draws `data_flow.png`: what happens to a batch in one training step.

python docs/pictures/data_flow.py
"""

import pathlib

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

_BOXES = {
    # name: (x, y, text)
    "input": (0.0, 1.0, "batch x"),
    "encoder": (2.3, 2.1, "encoder\nz = E(x)"),
    "policy": (4.6, 2.1, "policy\nmean of p =\nm_p + <v_p, z>"),
    "bits": (6.9, 2.1, "draw\nbit-widths"),
    "network": (6.9, 0.0, "network with LSQ\nquantizers at\nthese bits"),
    "loss": (9.2, 0.0, "task loss"),
    "cost": (9.2, 2.1, "expected cost\nagainst budget"),
    "step": (11.5, 1.0, "one gradient:\nweights, steps,\nmeans, encoder"),
}
_ARROWS = (
    ("input", "encoder"),
    ("input", "network"),
    ("encoder", "policy"),
    ("policy", "bits"),
    ("bits", "network"),
    ("bits", "cost"),
    ("network", "loss"),
    ("loss", "step"),
    ("cost", "step"),
)


def draw(path: pathlib.Path) -> None:
    """Draws the picture into a PNG file."""
    figure, axes = plt.subplots(figsize=(11, 3.2))
    axes.set(xlim=(-1.1, 12.7), ylim=(-0.7, 2.9))
    axes.axis("off")
    labels = {
        name: axes.text(
            x,
            y,
            text,
            ha="center",
            va="center",
            fontsize=9,
            bbox={"boxstyle": "round,pad=0.5", "fc": "#eef2f5", "ec": "#444"},
        )
        for name, (x, y, text) in _BOXES.items()
    }
    figure.canvas.draw()
    for start, end in _ARROWS:
        patches = [labels[name].get_bbox_patch() for name in (start, end)]
        axes.annotate(
            "",
            xy=_BOXES[end][:2],
            xytext=_BOXES[start][:2],
            arrowprops={
                "arrowstyle": "-|>",
                "color": "#444",
                "patchA": patches[0],
                "patchB": patches[1],
                "shrinkA": 2,
                "shrinkB": 2,
            },
        )
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    draw(pathlib.Path(__file__).with_name("data_flow.png"))
