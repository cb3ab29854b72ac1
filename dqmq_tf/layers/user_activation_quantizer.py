"""Runs quantizers of the user's own on an activation tensor."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.errors import ConversionError
from dqmq_tf.layers import grid_search
from dqmq_tf.layers.activation_quantizer import ActivationQuantizer, apply_relu, fixed_grid
from dqmq_tf.layers.user_quantizer import NamedQuantizer, UserQuantizer


@keras.saving.register_keras_serializable(package="dqmq_tf")
class UserActivationQuantizer(ActivationQuantizer):
    """Quantizes an activation by TFMOT quantizers in place of a learned step size.

    Args:
        quantizers: The names and quantizers, which run in this order.
        shape: The shape of the tensor, `[batch, ...]`.
        path: The path of the layer whose config has the quantizers, for messages.
        bit_widths: The one bit-width that counts in the cost.
        range: See `ActivationQuantizer`.

    Input and output shape: see `ActivationQuantizer`.
    """

    def __init__(
        self,
        quantizers: Sequence[NamedQuantizer],
        shape: Sequence[int | None],
        path: str,
        bit_widths: Sequence[int],
        range: str = "affine",
        **kwargs: Any,
    ) -> None:
        super().__init__(bit_widths, range=range, **kwargs)
        self.log_step.trainable = False
        self.config_path = path
        # TFMOT knows the shape of an output when it creates the quantizer, not that of an activation.
        is_output = all(name == "output" for name, _ in quantizers)
        self.quantizer = UserQuantizer(
            quantizers, shape if is_output else None, name=f"{self.name}_user"
        )
        self._probe_shape = (*(1 for _ in shape[1:-1]), *(n or 1 for n in shape[1:][-1:]))
        self._recorded: list[tf.Tensor] | None = None

    def call(
        self,
        x: tf.Tensor,
        decision: tf.Tensor | None = None,
        ceiling: float | None = None,
        are_means: bool = False,
        training: bool | None = None,
    ) -> tf.Tensor:
        if not x.dtype.is_floating:
            x = tf.cast(x, self.compute_dtype)
        x = apply_relu(x, ceiling)
        if self._recorded is not None:
            self._recorded.append(x)
            return x
        return self.quantizer(x, training=training)

    def compute_output_spec(
        self,
        x: Any,
        decision: Any = None,
        ceiling: float | None = None,
        are_means: bool = False,
        training: bool | None = None,
    ) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def observe(self) -> None:
        """Starts calibration: eager calls record the tensor and return it unchanged."""
        self._recorded = []

    def calibrate(self, for_training: bool = False) -> None:
        """Ends `observe`. The quantizers see the recorded tensors as training steps.

        Args:
            for_training: Whether a training follows, in which the quantizers see all data, as in
                TFMOT. They do not see the recorded tensors then.

        Raises:
            ValueError: If the recorded tensors contain NaN or infinity.
        """
        recorded, self._recorded = self._recorded, None
        for x in recorded or ():
            self._check_finite(ops.convert_to_numpy(ops.cast(x, "float32")))
            if not for_training:
                self.quantizer(x, training=True)
        if recorded:
            self.calibrated.assign(1.0)

    def take_observed(self) -> list[np.ndarray]:
        """Ends `observe`. The quantizers see all data of a training by themselves."""
        self._recorded = None
        return []

    def values(self, bit_width: int) -> tuple[float, int]:
        """Returns `(step, zero_point)` of the quantizers at inference.

        Raises:
            ConversionError: If no integer kernel can write what they make of a tensor.
        """
        found = self._step_and_zero_point()
        if not isinstance(found, str):
            return found
        raise ConversionError(
            f"Layer {self.config_path!r}: {self.quantizer.description} runs on its output, but "
            f"{found}. The model can be trained and evaluated. For a file, give the layer a "
            "quantizer of num_bits=8, narrow_range=False and per_axis=False."
        )

    def is_on_grid(self) -> bool:
        """Returns whether an integer kernel can write what the quantizers make of a tensor."""
        return not isinstance(self._step_and_zero_point(), str)

    def _step_and_zero_point(self) -> tuple[float, int] | str:
        """Returns `(step, zero_point)` at inference, or the reason why no kernel can write them."""
        grid, bits = self._grid(), self.bit_widths[-1]
        if isinstance(grid, str):
            return grid
        if grid[2] != 2**bits:
            return f"it has {grid[2]} levels, but a tensor of {bits} bits has {2**bits}"
        if self.range != "affine" and not self._has_fixed_grid(grid):
            return "the kernel that computes it has a fixed range, which is another"
        return grid[0], grid[1]

    def _grid(self) -> tuple[float, int, int] | str:
        """Returns what `activation_grid` finds.

        Before any training, the quantizers may have no range yet. Then it is found after a training
        step on numbers between -1 and 1, and no variable changes.
        """
        with self.quantizer.restored():
            if not self.quantizer.has_trained:
                numbers = np.linspace(-1.0, 1.0, 65, dtype="float32")
                self.quantizer(self._probe(numbers), training=True)
            return grid_search.activation_grid(self._inferred)

    def _inferred(self, values: np.ndarray) -> np.ndarray:
        """Returns what becomes of numbers `[N]` in each channel, `[N, channels]`."""
        y = self.quantizer(self._probe(values), training=False)
        return ops.convert_to_numpy(y).reshape(len(values), -1)

    def _probe(self, values: np.ndarray) -> tf.Tensor:
        """Returns a tensor of the rank and channels that are quantized, with a number a sample."""
        ones = (1,) * len(self._probe_shape)
        return tf.constant(
            np.broadcast_to(values.reshape(-1, *ones), (len(values), *self._probe_shape))
        )

    def _has_fixed_grid(self, grid: tuple[float, int, int]) -> bool:
        step, zero_point = fixed_grid(self.range, np.array(self.bit_widths[-1:], "float32"))
        return bool(np.isclose(grid[0], step[0], rtol=1e-5)) and grid[1] == zero_point[0]
