"""One wrapper that quantizes the kernels of any layer."""

import functools

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.graph.kernels import variable_names
from dqmq_tf.layers import lsq, step_fitting
from dqmq_tf.layers.graph_functions import one_node
from dqmq_tf.policy import decision_tensor


class Constants:
    """Call arguments that are no tensors; Keras refuses them beside tensors in `**kwargs`."""

    def __init__(self, values):
        self.values = values


@keras.saving.register_keras_serializable(package="dqmq_tf")
class QuantizeWrapper(keras.layers.Layer):
    """Runs a layer with quantized kernels, without the layer knowing.

    Kernels are replaced for the length of the call through `keras.StatelessScope`, so any layer,
    custom ones included, is served by the same code. Each kernel has one learned step size per
    candidate bit-width and output channel: symmetric, narrow range (LSQ, arXiv 1902.08153).

    Weight bits are decided per group of samples. While the policy searches, the batch comes sorted
    and each group is one contiguous, equal share of it, so the work stays one pass per sample;
    elsewhere each group's kernels run on the batch and every sample takes its own group's result.

    Args:
        layer: A built layer.
        points: For each quantized variable `{"variable", "column", "channel_axes", "bit_widths"}`.
    """

    def __init__(self, layer, points, **kwargs):
        kwargs = {"name": layer.name, "trainable": layer.trainable, **kwargs, "autocast": False}
        super().__init__(**kwargs)
        self.layer = layer
        self.points = [dict(point) for point in points]
        self.supports_masking = layer.supports_masking
        self._float = False
        self.log_steps = []
        for index, point in enumerate(self.points):
            shape = variable_names(layer)[point["variable"]].shape
            axes = [axis % len(shape) for axis in point["channel_axes"]]
            steps = [n if axis in axes else 1 for axis, n in enumerate(shape)]
            self.log_steps.append(
                self.add_weight(
                    name=f"log_step_{index}",
                    shape=(len(point["bit_widths"]), *steps),
                    initializer="zeros",
                    dtype="float32",
                )
            )
        self.built = True

    def build(self, *args, **kwargs):
        """The layer was built before it was wrapped."""

    def kernel(self, name):
        """Returns the float variable behind a decision point."""
        return variable_names(self.layer)[name]

    def fit_steps(self):
        """Sets all step sizes to those of least squared error for the weights as they are."""
        for point, log_step in zip(self.points, self.log_steps):
            weights = ops.convert_to_numpy(self.kernel(point["variable"]))
            steps = step_fitting.fit_weight_steps(
                weights.astype("float32"), point["channel_axes"], point["bit_widths"]
            )
            log_step.assign(np.log(np.maximum(steps, 1e-12)))

    def step(self, variable, bit_width):
        """Returns the step sizes of a kernel at a bit-width: float32, one per channel."""
        index = [point["variable"] for point in self.points].index(variable)
        row = self.points[index]["bit_widths"].index(bit_width)
        return np.exp(ops.convert_to_numpy(self.log_steps[index])[row])

    def integers(self, variable, bit_width):
        """Returns the integers of a kernel at a bit-width, int32 of its shape."""
        weights = ops.convert_to_numpy(self.kernel(variable)).astype("float32")
        return step_fitting.weight_integers(weights, self.step(variable, bit_width), bit_width)

    def observe(self):
        """Runs the layer in floating point until `calibrate`."""
        self._float = True

    def calibrate(self):
        """Ends `observe`."""
        self._float = False

    def call(self, *args, weight_decision, group, constants=None, training=None, **kwargs):
        kwargs |= constants.values if constants else {}
        if self._float:
            return self.layer(*args, **kwargs)
        groups = weight_decision.shape[0]
        if groups == 1:
            return self._run(weight_decision[0], args, kwargs)
        if training and weight_decision.shape[-1] == decision_tensor.FIELDS:
            return self._run_shares(weight_decision, args, kwargs)
        results = [self._run(weight_decision[g], args, kwargs, groups) for g in range(groups)]
        return keras.tree.map_structure(lambda *parts: _pick(parts, group), *results)

    def compute_output_spec(
        self, *args, weight_decision, group, constants=None, training=None, **kwargs
    ):
        kwargs |= constants.values if constants else {}
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_mask(self, inputs, previous_mask=None):
        return self.layer.compute_mask(inputs, previous_mask)

    def _run_shares(self, weight_decision, args, kwargs):
        """Each contiguous share of a sorted batch with the kernels of its own group."""
        groups = weight_decision.shape[0]
        leaves = keras.tree.flatten((args, kwargs))
        batch = next(ops.shape(x)[0] for x in leaves if ops.is_tensor(x) and len(x.shape))
        share = batch // groups
        sizes = [share] * (groups - 1) + [batch - share * (groups - 1)]

        # A split's gradient is one concatenation; that of slices would pad and add.
        def cut(x):
            if ops.is_tensor(x) and len(x.shape):
                return tf.split(x, sizes, num=groups)
            return [x] * groups

        parts = [cut(x) for x in leaves]
        results = []
        for g in range(groups):
            part_args, part_kwargs = keras.tree.pack_sequence_as(
                (args, kwargs), [part[g] for part in parts]
            )
            results.append(self._run(weight_decision[g], part_args, part_kwargs, groups))
        return keras.tree.map_structure(lambda *parts: ops.concatenate(parts, axis=0), *results)

    def _run(self, decision, args, kwargs, groups=1):
        """One call of the layer with the kernels of one row `[decision points, fields]`."""
        mapping = []
        for point, log_step in zip(self.points, self.log_steps):
            kernel = self.kernel(point["variable"])
            row = decision[point["column"]]
            quantizer = _kernel_quantizer(
                tuple(i for i, n in enumerate(log_step.shape[1:]) if n == 1),
                len(kernel.shape),
                tuple(point["bit_widths"]),
                row.shape[0],
            )
            weights = ops.cast(kernel.value, "float32")
            mapping.append((kernel, quantizer(weights, log_step.value, row)))
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            result = self.layer(*args, **kwargs)
        for loss in scope.losses:
            self.add_loss(loss / groups)
        replaced = {id(kernel) for kernel, _ in mapping}
        # What the layer wanted to assign (a seed, a moving mean) was only recorded: hand it on.
        for variable in self.layer.variables:
            value = scope.get_current_value(variable)
            if value is not None and id(variable) not in replaced:
                variable.assign(value)
        return result

    def get_config(self):
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "points": self.points,
        }

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer, **config)


@functools.cache
def _kernel_quantizer(reduced_axes, rank, candidates, fields):
    """A function of a kernel, its step sizes `[K, …]` and a decision row `[fields]`."""
    one = (1,) * rank
    channels = [1 if axis in reduced_axes else None for axis in range(rank)]

    def quantize(weights, log_step, row):
        bits = decision_tensor.bit_widths_of(row)
        table = tf.reshape(log_step, (len(candidates), -1))
        steps = tf.unstack(tf.exp(decision_tensor.look_up(table, candidates, bits)))
        steps = [tf.reshape(step, tf.shape(log_step)[1:]) for step in steps]
        parameters = [
            (tf.ensure_shape(step, channels), *(tf.reshape(q, one) for q in limits))
            for step, limits in zip(steps, map(lsq.weight_limits, tf.unstack(bits)))
        ]
        if fields == 1:
            return lsq.quantize(weights, *parameters[0])
        slope, mean = (
            tf.reshape(row[i], one) for i in (decision_tensor.SLOPE, decision_tensor.MEAN)
        )
        return lsq.relaxed_quantize(weights, *parameters, mean, slope)

    signature = [
        tf.TensorSpec([None] * rank),
        tf.TensorSpec([len(candidates), *channels]),
        tf.TensorSpec([fields]),
    ]
    return one_node(quantize, signature)


def _pick(parts, group):
    """Takes each sample from the part of its group."""
    result = parts[0]
    for index, part in enumerate(parts[1:], start=1):
        shape = (-1,) + (1,) * (len(part.shape) - 1)
        result = ops.where(ops.reshape(ops.equal(group, index), shape), part, result)
    return result
