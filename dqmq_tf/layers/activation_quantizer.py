"""Fake quantization of an activation tensor."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.layers import lsq, step_fitting
from dqmq_tf.layers.graph_functions import one_node, worth_compiling
from dqmq_tf.layers.normalization import normalization_of
from dqmq_tf.layers.slices import in_slices, restored
from dqmq_tf.policy import decision_tensor
from dqmq_tf.precision import INT16_BITS, KEEPS_PRECISION

# The most values of an activation that calibration keeps of a call, and of all calls together.
_MAX_VALUES_PER_CALL = 65_536
_MAX_VALUES = 2 * (_MAX_VALUES_PER_CALL + 2)


@keras.saving.register_keras_serializable(package="dqmq_tf")
class ActivationQuantizer(keras.layers.Layer):
    """Quantizes an activation with one learned step size per candidate bit-width.

    The quantization is per tensor, asymmetric up to 8 bits and symmetric at 16, as in TFLite. The
    method is LSQ (arXiv 1902.08153) with zero points that are fixed at calibration. Before
    calibration, the tensor passes unchanged.

    Args:
        bit_widths: The candidate bit-widths, ascending.
        column: The column of the activation decision that holds the bit-width of this tensor.
            None if there is only one candidate.
        range: `"affine"` for a range that is calibrated and then learned. `"unit"` and `"tanh"`
            are the fixed ranges of the int8 kernels of softmax and sigmoid (step `2**-b` from 0)
            and of tanh (step `2**(1-b)` around 0). `"pixels"` is the range of uint8 images (step
            `2**(8-b)` from 0), and `"0..c"` that of a relu with the ceiling c. At 16 bits, all
            ranges are symmetric, and those of softmax and sigmoid are that of tanh.
        compiled: Whether XLA compiles the loops (see `shapes_worth_compiling`).

    Input shape: any float tensor `[batch, ...]`. Output shape: the same. If `call` gets a
    `ceiling`, it applies a ReLU or ReLU6 first (see `RectifiedQuantizer`). With `are_means`, it rounds
    as the kernel of an average pool does (see `dqmq_tf.precision.round_means`).
    """

    # Each shape of an activation costs two compilations, about half a second of processor time. That
    # pays where the shape holds this share of all quantized values in the network.
    COMPILED_SHARE = 0.03

    def __init__(
        self,
        bit_widths: Sequence[int],
        column: int | None = None,
        range: str = "affine",
        compiled: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{**kwargs, **KEEPS_PRECISION})
        self.bit_widths = tuple(int(b) for b in bit_widths)
        self.column = column
        self.range = range
        self.compiled = compiled
        self.supports_masking = True
        self._observed: list[np.ndarray] | None = None
        self._kept = _MAX_VALUES_PER_CALL
        count = (len(self.bit_widths),)
        is_learned = range == "affine"
        # A fixed range is known before any data, so that a file can be written to learn its size.
        step, zero_point = fixed_grid(range, np.array(self.bit_widths, "float32"))
        self.log_step = self.add_weight(
            name="log_step",
            shape=count,
            initializer=lambda shape, dtype: np.log(step),
            dtype="float32",
            trainable=is_learned and self.trainable,
        )
        self.zero_point = self.add_weight(
            name="zero_point",
            shape=count,
            initializer=lambda shape, dtype: zero_point,
            dtype="float32",
            trainable=False,
        )
        self.calibrated = self.add_weight(
            name="calibrated", shape=(), initializer="zeros", dtype="float32", trainable=False
        )
        self.built = True

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: no weight depends on the input shape."""

    def call(
        self,
        x: tf.Tensor,
        decision: tf.Tensor | None = None,
        ceiling: float | None = None,
        are_means: bool = False,
    ) -> tf.Tensor:
        if not x.dtype.is_floating:
            # Some layers return integers where their output is declared as floating point, such as
            # `IntegerLookup` with one-hot outputs.
            x = tf.cast(x, self.compute_dtype)
        if self._observed is not None:
            x = apply_relu(x, ceiling)
            self._observe(x)
            return x
        rows, fields = [], 0
        if self.column is not None:
            assert decision is not None
            rows, fields = [decision[:, self.column]], decision.shape[-1]
        learns = self.log_step.trainable
        table = ops.stack([self.log_step.value, self.zero_point.value], axis=-1)
        args = table, tf.convert_to_tensor(self.calibrated.value), *rows
        normalization = normalization_of(x)
        if normalization is not None:
            quantize = _quantizing(4, self.bit_widths, fields, ceiling, learns=learns)
            signature = _signature(self.bit_widths, fields)
            return normalization.then(quantize, signature, *args).output()
        # Tensors that share a scale may have other shapes.
        compiled = self.compiled and worth_compiling(x)
        values = in_slices(x) if compiled else x
        # XLA compiles one loop for each shape, other functions take all shapes.
        shape = (None, values.shape[1], None) if compiled else (None,) * len(x.shape)
        spec = tf.TensorSpec(shape, x.dtype)
        options = (fields, ceiling, are_means, learns)
        quantized = _quantizer(spec, compiled, self.bit_widths, *options)(values, *args)
        return restored(quantized, x) if compiled else quantized

    def compute_output_spec(
        self,
        x: Any,
        decision: Any = None,
        ceiling: float | None = None,
        are_means: bool = False,
    ) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def values(self, bit_width: int) -> tuple[float, int]:
        """Returns `(step, zero_point)` of a candidate bit-width."""
        row = self.bit_widths.index(bit_width)
        if bit_width == INT16_BITS and self.range != "affine":
            # Float32 has no logarithm of 2**-15, the step of the int16 kernels.
            step, zero_point = fixed_grid(self.range, np.array([bit_width], "float64"))
            return float(step[0]), int(zero_point[0])
        step = np.exp(ops.convert_to_numpy(self.log_step)[row])
        return float(step), int(ops.convert_to_numpy(self.zero_point)[row])

    def observe(self) -> None:
        """Starts calibration: eager calls record the tensor and return it unchanged."""
        self._observed, self._kept = [], _MAX_VALUES_PER_CALL

    def calibrate(self, for_training: bool = False) -> None:
        """Ends `observe` and fits the step sizes and zero points of all candidates.

        Args:
            for_training: Whether a training follows. It makes no difference to learned steps.

        Raises:
            ValueError: If the recorded tensors contain NaN or infinity.
        """
        observed = self.take_observed()
        if not observed:
            return
        values = np.concatenate(observed)
        self._check_finite(values)
        bits = np.array(self.bit_widths, "float32")
        step, zero_point = fixed_grid(self.range, bits)
        if self.range == "affine":
            step, zero_point = step_fitting.fit_activation_range(values, self.bit_widths)
        self.log_step.assign(np.log(step))
        self.zero_point.assign(zero_point)
        self.calibrated.assign(1.0)

    def take_observed(self) -> list[np.ndarray]:
        """Ends `observe` and returns the recorded values."""
        observed, self._observed = self._observed, None
        return observed or []

    def follow(self, observed: list[np.ndarray]) -> None:
        """Fits again the candidates whose grids suit the values of the tensor no more.

        A fixed range stays as it is. So does any range if there are no values, NaN or infinity.

        Args:
            observed: What `take_observed` returned.
        """
        values = np.concatenate([np.empty(0, "float32"), *observed])
        if self.range != "affine" or not values.size or not np.isfinite(values).all():
            return
        log_step = ops.convert_to_numpy(self.log_step)
        before = np.exp(log_step)
        step, zero_point = step_fitting.following_range(
            values, before, ops.convert_to_numpy(self.zero_point), self.bit_widths
        )
        # The logarithm of an exponential may be the next number.
        self.log_step.assign(np.where(step == before, log_step, np.log(step)))
        self.zero_point.assign(zero_point)

    def _check_finite(self, values: np.ndarray) -> None:
        """Raises `ValueError` if recorded values contain NaN or infinity."""
        if not np.isfinite(values).all():
            raise ValueError(
                f"The tensor at {self.name!r} contains NaN or infinity on the calibration data. "
                "Check the inputs for NaN and the float model for overflow."
            )

    def _observe(self, x: tf.Tensor) -> None:
        assert self._observed is not None
        values = ops.convert_to_numpy(ops.cast(x, "float32")).ravel()
        self._observed.append(_sampled(values, self._kept, len(self._observed)))
        # Of each of many calls fewer values are kept, so that memory does not grow with them.
        while sum(map(len, self._observed)) > _MAX_VALUES and self._kept > 1:
            self._kept //= 2
            self._observed = [_sampled(v, self._kept, n) for n, v in enumerate(self._observed)]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "bit_widths": self.bit_widths,
            "column": self.column,
            "range": self.range,
            "compiled": self.compiled,
        }


def _sampled(values: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Returns all values `[N]` or a random sample of them with the minimum and the maximum."""
    # A fixed stride could hit the same channel every time.
    if values.size <= most:
        return values
    extremes = [values.min(), values.max()]
    return np.append(np.random.default_rng(seed).choice(values, most), extremes)


def fixed_grid(range: str, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps and zero points `[K]` that a fixed range has at bit-widths `[K]`.

    A range that is learned, `"affine"`, begins with steps of 1. At 16 bits, all are symmetric.
    """
    step, zero_point = _asymmetric_grid(range, bits)
    is_int16 = bits == INT16_BITS
    middle = 2.0 ** (INT16_BITS - 1)
    if range in ("unit", "tanh"):
        step = np.where(is_int16, 1.0 / middle, step)
    elif range.startswith("0.."):
        step = np.where(is_int16, float(range.removeprefix("0..")) / (middle - 1.0), step)
    return step, np.where(is_int16, middle, zero_point)


def _asymmetric_grid(range: str, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `fixed_grid` does, for bit-widths up to 8."""
    if range == "unit":
        return 2.0**-bits, 0.0 * bits
    if range == "pixels":
        return 2.0 ** (8.0 - bits), 0.0 * bits
    if range == "tanh":
        return 2.0 ** (1.0 - bits), 2.0 ** (bits - 1.0)
    if range.startswith("0.."):
        return float(range.removeprefix("0..")) / (2.0**bits - 1.0), 0.0 * bits
    return np.ones_like(bits), 0.0 * bits


@functools.cache
def _quantizer(
    spec: tf.TensorSpec,
    compiled: bool,
    candidates: tuple[int, ...],
    fields: int,
    ceiling: float | None,
    are_means: bool,
    learns: bool,
) -> Callable[..., tf.Tensor]:
    """Returns what `_quantizing` does, as one node.

    Args:
        spec: The type and shape of the tensor.
        compiled: Whether XLA compiles the function into one loop for each direction. The ten
            element-wise operations that it replaces take longer than the convolution before them.
        candidates, fields, ceiling, are_means, learns: See `_quantizing`.
    """
    quantize = _quantizing(len(spec.shape), candidates, fields, ceiling, are_means, learns)
    return one_node(quantize, [spec, *_signature(candidates, fields)], compiled)


def _signature(candidates: tuple[int, ...], fields: int) -> list[tf.TensorSpec]:
    """Returns the `tf.TensorSpec` of what `_quantizing` needs beside the tensor."""
    rows = [tf.TensorSpec([None, fields])] if fields else []
    return [tf.TensorSpec([len(candidates), 2]), tf.TensorSpec([]), *rows]


@functools.cache
def _quantizing(
    rank: int,
    candidates: tuple[int, ...],
    fields: int,
    ceiling: float | None,
    are_means: bool = False,
    learns: bool = True,
) -> Callable[..., tf.Tensor]:
    """Returns a function of a tensor, its steps and zero points, a flag and decision rows.

    Args:
        rank: The rank of the tensor `[batch, ...]`.
        candidates: The K candidate bit-widths.
        fields: The number of fields in the decision rows `[1 or batch, fields]`. 0 for a function
            without decision rows, which always takes the last candidate.
        ceiling: The upper limit of a ReLU in front of the quantizer. None if there is no ReLU.
        are_means: Whether an average pool computes the tensor.
        learns: Whether the steps have a gradient. TensorFlow would make a copy of the function for
            each call whose gradient nobody reads.

    Returns:
        A function `(x, table, calibrated, row) -> quantized x`. `table` has shape `[K, 2]` and
        holds the logarithm of the step and the zero point of each candidate. `calibrated` is 0
        or 1, and has no gradient.
    """

    def columns(values: tf.Tensor) -> list[tf.Tensor]:
        """Splits `[batch, n]` into n tensors that broadcast against the activation."""
        shape = (-1,) + (1,) * (rank - 1)
        return [tf.reshape(column, shape) for column in tf.unstack(values, axis=1)]

    def quantize(
        x: tf.Tensor, table: tf.Tensor, calibrated: tf.Tensor, row: tf.Tensor | None = None
    ) -> tf.Tensor:
        if row is None:
            row = tf.constant([[float(candidates[-1])]])
        bits = decision_tensor.bit_widths_of(row)
        table = table if learns else tf.stop_gradient(table)
        log_step, zero_point = tf.unstack(decision_tensor.look_up(table, candidates, bits), axis=-1)
        # A step of 0 leaves the tensor unchanged until it is calibrated.
        step = tf.exp(log_step) * tf.stop_gradient(calibrated)
        q_max = tf.pow(2.0, bits) - 1.0 - zero_point
        parameters = list(zip(columns(step), columns(-zero_point), columns(q_max)))
        x = apply_relu(x, ceiling)
        if fields <= 1:
            return lsq.quantize(x, *parameters[0], are_means)
        slope, mean = columns(row[:, decision_tensor.SLOPE :])
        executed, low, high = parameters
        return lsq.relaxed_quantize(x, executed, low, high, mean, slope, are_means)

    return quantize


def apply_relu(x: tf.Tensor, ceiling: float | None) -> tf.Tensor:
    """Applies a ReLU with a ceiling, which may be infinity. None applies nothing."""
    if ceiling is None:
        return x
    if ceiling == np.inf:
        return tf.nn.relu(x)
    return ops.relu6(x) if ceiling == 6 else ops.clip(x, 0.0, ceiling)
