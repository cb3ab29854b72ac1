"""The Python code in `README.md` and `docs/`: it names what exists, and that of the guides runs.

A block of `docs/` that cannot run has a comment before it, which the site does not show:

    <!-- not run: REASON -->
"""

import ast
import inspect
import pathlib
import re
from typing import NamedTuple

import keras
import numpy as np
import pytest

import dqmq_tf
from dqmq_tf import quality

ROOT = pathlib.Path(__file__).resolve().parents[1]
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+) -->\n)?```python\n(?P<code>.*?)^```", re.M | re.S
)


class Block(NamedTuple):
    """A fenced block of Python, and why it cannot run, or None."""

    page: pathlib.Path
    line: int
    code: str
    reason: str | None

    def run(self, names, replace=("", "")):
        """Runs the block; an error shows the page and the line."""
        # Empty lines before the code, so that lines count from the top of the page.
        code = "\n" * (self.line - 1) + self.code.replace(*replace)
        exec(compile(code, str(self.page), "exec"), names)


def blocks(page):
    """Returns the blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start("code")) + 1, match["code"], match["reason"])
        for match in BLOCK.finditer(text)
    ]


PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if blocks(path)]
# Code that a reader of the page has before its first block.
PREPARATION = {
    "deploying": """
qmodel = dqmq_tf.quantize_model(model)
qmodel.calibrate(images)
dqmq_tf.convert(qmodel, "model.tflite", data=images)
class_names = [f"digit {number}" for number in range(10)]
""",
    "migrating-from-tfmot": """
import tf_keras

old_model = tf_keras.Sequential([tf_keras.layers.InputLayer((8,)), tf_keras.layers.Dense(3)])
""",
}
# Settings of the pages that take long, and what they are here.
SMALLER = ("steps = 1000", "steps = 10")


def public_object(expression):
    """Returns the object that `dqmq_tf.a.b` or `quality.a` names, or None for other expressions."""
    if isinstance(expression, ast.Name):
        return {"dqmq_tf": dqmq_tf, "quality": dqmq_tf.quality}.get(expression.id)
    if isinstance(expression, ast.Attribute):
        parent = public_object(expression.value)
        # An attribute that does not exist is an error: the page names something outdated.
        return None if parent is None else getattr(parent, expression.attr)
    return None


def test_code_of_the_pages_uses_names_and_arguments_that_exist():
    calls = 0
    for block in [b for page in (ROOT / "README.md", *PAGES) for b in blocks(page)]:
        for node in ast.walk(ast.parse(block.code, filename=str(block.page))):
            if isinstance(node, ast.Attribute):
                public_object(node)
            if isinstance(node, ast.Call) and (called := public_object(node.func)) is not None:
                calls += 1
                named = {keyword.arg: None for keyword in node.keywords}
                inspect.signature(called).bind(*node.args, **named)
    assert calls > 20


@pytest.fixture(scope="module")
def readers_names():
    """What the guides leave to the reader: a float model, and data."""
    keras.utils.set_random_seed(0)
    dataset = quality.digits("train", size=16, channels=1).take(256)
    images = np.stack([image for image, _ in dataset.as_numpy_iterator()])
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((16, 16, 1), name="image"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    return {
        "dqmq_tf": dqmq_tf,
        "model": model,
        "dataset": dataset,
        "train": dataset.take(64).batch(32),
        "test": dataset.take(32).batch(32),
        "images": images,
        "image": images[0],
    }


def test_there_are_guides_with_code():
    names = {page.stem for page in PAGES}
    assert names >= {"get-started", "deploying", "targets-and-budgets", "adaptive-files"}
    assert names >= PREPARATION.keys()
    assert any(SMALLER[0] in block.code for page in PAGES for block in blocks(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_a_page_runs_in_order(page, readers_names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    names = dict(readers_names)
    exec(PREPARATION.get(page.stem, ""), names)
    runnable = [block for block in blocks(page) if block.reason is None]
    assert runnable
    for block in runnable:
        block.run(names, replace=SMALLER)
