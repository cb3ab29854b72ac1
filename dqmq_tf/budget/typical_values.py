"""Typical numbers in place of those that a network only gets in training, while a file is weighed.

Before calibration, all steps of activations are 1, and in a new network all biases are 0. A file with
them compresses far better, and shares more of its buffers, than the file after the training. Its size
would promise a budget that no training can meet.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

_NEW = ("bias", "beta", "moving_mean")
# The largest absolute value of a bias. With steps of activations of 1 to 2, its integers are as large
# as those of a trained network.
_LARGEST_BIAS = 50.0


@contextlib.contextmanager
def typical_values(parts: Any) -> Iterator[None]:
    """Gives a model biases, and steps of activations, like those after a training.

    Only values that nothing has set yet are changed. They return when the context ends.

    Args:
        parts: The `ModelParts` of the model.
    """
    random = np.random.default_rng(0)
    before: list[tuple[keras.Variable, np.ndarray]] = []

    def change(variable: keras.Variable, values: np.ndarray) -> None:
        before.append((variable, ops.convert_to_numpy(variable)))
        variable.assign(values)

    try:
        for quantizer in parts.quantizers:
            if quantizer.range == "affine" and not quantizer.calibrated.numpy():
                change(quantizer.log_step, random.uniform(0.0, 0.7, quantizer.log_step.shape))
        for variable in parts.body.weights:
            is_new = variable.path.split("/")[-1] in _NEW and not np.any(variable.numpy())
            if is_new and variable.dtype.startswith("float"):
                change(variable, random.uniform(-_LARGEST_BIAS, _LARGEST_BIAS, variable.shape))
        yield
    finally:
        for variable, values in before:
            variable.assign(values)
