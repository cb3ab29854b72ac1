"""Fake quantization of a tensor between layers."""

import math

import keras
import numpy as np
from keras import ops

from dqmq_tf import quantizers
from dqmq_tf.layers import decision as decisions

_SAMPLES_PER_CALL = 65_536
# Values per sample from which XLA saves more time than it takes to compile, half a second a shape.
_WORTH_COMPILING = 4096


@keras.saving.register_keras_serializable(package="dqmq_tf")
class ActivationQuantizer(keras.layers.Layer):
    """Quantizes a tensor per tensor, asymmetric, with one learned step size per candidate.

    Until `calibrate` has seen data the tensor passes unchanged. Method: LSQ (arXiv 1902.08153)
    with zero points that are fixed at calibration.

    Args:
        bit_widths: Candidates, ascending.
        column: Column of the activation decision that holds this point's bit-width; None where
            there is only one candidate.
        range: `"affine"`: calibrated and learned. `"unit"` and `"tanh"`: fixed by the int8 kernels
            of softmax, sigmoid and tanh, step 2**-b from 0 and 2**(1-b) around 0.

    Input shape: any float tensor `[batch, ...]`. Output shape: the same.
    """

    def __init__(self, bit_widths, column=None, range="affine", **kwargs):
        super().__init__(**{**kwargs, "autocast": False})
        self.bit_widths = tuple(int(b) for b in bit_widths)
        self.column = column
        self.range = range
        self.supports_masking = True
        self._observed = None
        count = (len(self.bit_widths),)
        learned = range == "affine"
        self.log_step = self.add_weight(
            name="log_step", shape=count, initializer="zeros", dtype="float32", trainable=learned
        )
        self.zero_point = self.add_weight(
            name="zero_point", shape=count, initializer="zeros", dtype="float32", trainable=False
        )
        self.calibrated = self.add_weight(
            name="calibrated", shape=(), initializer="zeros", dtype="float32", trainable=False
        )
        self.built = True

    def build(self, input_shape=None):
        """Nothing depends on the input's shape."""

    def call(self, x, decision=None):
        if self._observed is not None:
            self._observe(x)
            return x
        if self.column is None:
            row = ops.convert_to_tensor([[float(self.bit_widths[-1])]])
        else:
            row = decision[:, self.column]
        parameters = self._parameters(decisions.bit_widths_of(row), len(x.shape))
        compiled = math.prod(n or 1 for n in x.shape[1:]) >= _WORTH_COMPILING
        if row.shape[-1] == 1:
            return quantizers.quantize(x, *parameters[0], compiled=compiled)
        executed, low, high = parameters
        slope, mean = ops.unstack(_aligned(row[:, decisions.SLOPE :], len(x.shape)), axis=1)
        return quantizers.relaxed_quantize(x, executed, low, high, mean, slope, compiled=compiled)

    def compute_output_spec(self, x, decision=None):
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def _parameters(self, bits, rank):
        """`(step, q_min, q_max)`, each `[batch, 1, …]`, for each column of bits `[batch, n]`."""
        table = ops.stack([self.log_step.value, self.zero_point.value], axis=-1)
        log_step, zero_point = ops.unstack(decisions.look_up(table, self.bit_widths, bits), axis=-1)
        step = ops.exp(log_step) * self.calibrated
        q_max = ops.power(2.0, bits) - 1.0 - zero_point
        aligned = [_aligned(part, rank) for part in (step, -zero_point, q_max)]
        return list(zip(*(ops.unstack(part, axis=1) for part in aligned)))

    def values(self, bit_width):
        """Returns `(step, zero_point)` at a bit-width, as Python numbers."""
        row = self.bit_widths.index(bit_width)
        step = np.exp(ops.convert_to_numpy(self.log_step)[row])
        return float(step), int(ops.convert_to_numpy(self.zero_point)[row])

    def observe(self):
        """Begins to collect what the tensor holds; calls in eager mode pass it unchanged."""
        self._observed = []

    def calibrate(self):
        """Ends `observe` and sets the step sizes and zero points of all candidates.

        Raises:
            ValueError: If NaN or infinity was seen.
        """
        seen, self._observed = self._observed, None
        if not seen:
            return
        values = np.concatenate(seen)
        if not np.isfinite(values).all():
            raise ValueError(
                f"The tensor at {self.name!r} holds NaN or infinity on the calibration batch: "
                "look for NaN in the images, or for a float model that overflows."
            )
        bits = np.array(self.bit_widths, "float32")
        if self.range == "unit":
            step, zero_point = 2.0**-bits, 0.0 * bits
        elif self.range == "tanh":
            step, zero_point = 2.0 ** (1.0 - bits), 2.0 ** (bits - 1.0)
        else:
            step, zero_point = quantizers.fit_activation_range(values, self.bit_widths)
        self.log_step.assign(np.log(step))
        self.zero_point.assign(zero_point)
        self.calibrated.assign(1.0)

    def _observe(self, x):
        values = ops.convert_to_numpy(ops.cast(x, "float32")).ravel()
        if values.size > _SAMPLES_PER_CALL:
            # Drawn, not strided: a stride would keep meeting the same channel. The ends are kept.
            ends = [values.min(), values.max()]
            chosen = np.random.default_rng(len(self._observed)).choice(values, _SAMPLES_PER_CALL)
            values = np.append(chosen, ends)
        self._observed.append(values)

    def get_config(self):
        return {
            **super().get_config(),
            "bit_widths": self.bit_widths,
            "column": self.column,
            "range": self.range,
        }


def _aligned(values, rank):
    """`[batch, n]` to `[batch, n, 1, …]`, whose columns broadcast against a tensor of a rank."""
    batch = -1 if values.shape[0] is None else values.shape[0]
    return ops.reshape(values, (batch, values.shape[1]) + (1,) * (rank - 1))
