"""Fake quantization of a tensor between layers."""

import functools

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.layers import lsq, step_fitting
from dqmq_tf.layers.graph_functions import in_blocks, one_node, worth_compiling
from dqmq_tf.policy import decision_tensor

_SAMPLES_PER_CALL = 65_536


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

    Input shape: any float tensor `[batch, ...]`. Output shape: the same. With a `ceiling`
    the tensor passes a relu, or relu6, first (see `RectifiedQuantizer`).
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

    def call(self, x, decision=None, ceiling=None):
        if self._observed is not None:
            x = _rectified(x, ceiling)
            self._observe(x)
            return x
        if self.column is not None:
            row = decision[:, self.column]
        else:
            # For each sample: XLA is twice as slow at a sum over all samples as at one of each.
            row = tf.fill([tf.shape(x)[0], 1], float(self.bit_widths[-1]))
        compiled = worth_compiling(x)
        blocks = in_blocks(x) if compiled else None
        shaped = x if blocks is None else blocks
        quantizer = _tensor_quantizer(
            x.dtype, len(shaped.shape), self.bit_widths, row.shape[-1], compiled, ceiling
        )
        table = ops.stack([self.log_step.value, self.zero_point.value], axis=-1)
        quantized = quantizer(shaped, table, self.calibrated.value, row)
        return quantized if blocks is None else tf.reshape(quantized, (-1, *x.shape[1:]))

    def compute_output_spec(self, x, decision=None, ceiling=None):
        return keras.KerasTensor(x.shape, dtype=x.dtype)

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
            step, zero_point = step_fitting.fit_activation_range(values, self.bit_widths)
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


@functools.cache
def _tensor_quantizer(dtype, rank, candidates, fields, compiled, ceiling):
    """A function of a tensor, its steps and zero points `[K, 2]`, and decision rows.

    Args:
        dtype, rank: Of the tensor `[batch, ...]`.
        candidates: The K bit-widths.
        fields: Of the decision rows `[batch, fields]`.
        compiled: Whether XLA makes one loop of it each way: ten element-wise operations on an
            activation take longer than the convolutions between.
        ceiling: Of a relu before; None for none.
    """

    def columns(values):
        shape = (-1,) + (1,) * (rank - 1)
        return [tf.reshape(column, shape) for column in tf.unstack(values, axis=1)]

    def quantize(x, table, calibrated, row):
        bits = decision_tensor.bit_widths_of(row)
        log_step, zero_point = tf.unstack(decision_tensor.look_up(table, candidates, bits), axis=-1)
        # Step 0 leaves the tensor as it is: nothing has been calibrated.
        step = tf.exp(log_step) * calibrated
        q_max = tf.pow(2.0, bits) - 1.0 - zero_point
        parameters = list(zip(columns(step), columns(-zero_point), columns(q_max)))
        x = _rectified(x, ceiling)
        if fields == 1:
            return lsq.quantize(x, *parameters[0])
        slope, mean = columns(row[:, decision_tensor.SLOPE :])
        return lsq.relaxed_quantize(x, *parameters, mean, slope)

    signature = [
        tf.TensorSpec([None] * rank, dtype),
        tf.TensorSpec([len(candidates), 2]),
        tf.TensorSpec([]),
        tf.TensorSpec([None, fields]),
    ]
    return one_node(quantize, signature, compiled)


def _rectified(x, ceiling):
    """The tensor behind a relu, or relu6, with a ceiling of infinity or 6; as it is with None."""
    if ceiling is None:
        return x
    return tf.nn.relu(x) if ceiling == np.inf else ops.relu6(x)
