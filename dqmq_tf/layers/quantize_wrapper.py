"""One wrapper that quantizes the kernels of any layer."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.errors import ConversionError
from dqmq_tf.graph.kernels import variable_names
from dqmq_tf.layers import grid_search, step_fitting
from dqmq_tf.layers.kernel_quantizer import kernel_quantizer
from dqmq_tf.layers.user_quantizer import UserQuantizer
from dqmq_tf.policy import decision_tensor
from dqmq_tf.precision import KEEPS_PRECISION


@keras.saving.register_keras_serializable(package="dqmq_tf")
class Constants:
    """Call arguments that are not tensors.

    Keras rejects them in `**kwargs` next to tensors, so they are passed as one object. It has a config,
    because the config of a model tells which layers are called with what.

    Args:
        values: The arguments by name.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def get_config(self) -> dict[str, Any]:
        return {"values": dict(self.values)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Constants":
        return cls(keras.saving.deserialize_keras_object(config["values"]))


@keras.saving.register_keras_serializable(package="dqmq_tf")
class QuantizeWrapper(keras.layers.Layer):
    """Runs a layer with quantized kernels. The layer itself does not change.

    `keras.StatelessScope` replaces the kernels during the call, so that the same code serves every
    layer, custom layers included. Each kernel has one learned step size per candidate bit-width and
    output channel; the quantization is symmetric with a narrow range (LSQ, arXiv 1902.08153).

    Weight bits are chosen per group of samples. During the search, the batch arrives sorted and each
    group is one contiguous, equal share of it, so each sample is computed once. Otherwise the
    kernels of each group run on the whole batch, and each sample takes the result of its own group.

    Args:
        layer: A built layer.
        points: A dictionary for each quantized variable, with the keys `"variable"` (its name),
            `"column"` (its column of the decision), `"channel_axes"` and `"bit_widths"`.
        user_quantizers: `{variable: TFMOT quantizer}` of the variables that a quantizer of the
            user's own quantizes, in place of learned steps.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        points: Sequence[Mapping[str, Any]],
        user_quantizers: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs = {"name": layer.name, "trainable": layer.trainable, **kwargs, **KEEPS_PRECISION}
        super().__init__(**kwargs)
        self.layer = layer
        self.points = [dict(point) for point in points]
        self.supports_masking = layer.supports_masking
        self._float = False
        # The points with learned steps, and their steps.
        self._learned: list[dict[str, Any]] = []
        self.log_steps: list[keras.Variable] = []
        self.user_quantizers: dict[str, UserQuantizer] = {}
        for index, point in enumerate(self.points):
            name, shape = point["variable"], variable_names(layer)[point["variable"]].shape
            if user_quantizers and name in user_quantizers:
                # TFMOT names the variables of a quantizer by the last part of the weight's name.
                named = [(name.split("/")[-1], user_quantizers[name])]
                self.user_quantizers[name] = UserQuantizer(named, shape, name=f"quantizer_{index}")
                continue
            axes = [axis % len(shape) for axis in point["channel_axes"]]
            steps = [n if axis in axes else 1 for axis, n in enumerate(shape)]
            self._learned.append(point)
            self.log_steps.append(
                self.add_weight(
                    name=f"log_step_{index}",
                    shape=(len(point["bit_widths"]), *steps),
                    initializer="zeros",
                    dtype="float32",
                )
            )
        self.built = True

    def build(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the layer was built before it was wrapped."""

    def kernel(self, name: str) -> keras.Variable:
        """Returns a float variable of the layer by its name."""
        return variable_names(self.layer)[name]

    def fit_steps(self, kept: Mapping[str, Collection[int]] | None = None) -> None:
        """Sets step sizes to those with the least squared error for the current weights.

        Args:
            kept: The bit-widths of each variable that keep their step sizes. Training moves the step
                sizes of the bit-widths that it runs, and those of the others stay, whatever becomes
                of the weights. So all others are set if they suit the weights no more. None to set
                all.
        """
        for point, log_step in zip(self._learned, self.log_steps):
            name, bit_widths = point["variable"], point["bit_widths"]
            weights, rows = self._weights(name), ops.convert_to_numpy(log_step).copy()
            if kept is not None and step_fitting.spans(weights, np.exp(rows[-1]), bit_widths[-1]):
                continue
            fitted = step_fitting.fit_weight_steps(weights, point["channel_axes"], bit_widths)
            for row, best, bits in zip(rows, fitted, bit_widths):
                if kept is None or (
                    bits not in kept.get(name, ())
                    and step_fitting.is_stale(weights, np.exp(row), best, bits)
                ):
                    row[...] = np.log(np.maximum(best, 1e-12))
            log_step.assign(rows)

    def _weights(self, variable: str) -> np.ndarray:
        """Returns the float32 values of a variable of the layer."""
        return ops.convert_to_numpy(self.kernel(variable)).astype("float32")

    def step(self, variable: str, bit_width: int) -> np.ndarray:
        """Returns the step sizes of a kernel at a bit-width.

        Returns:
            A float32 array of the kernel's rank, with 1 on the axes that share a step.
        """
        if variable in self.user_quantizers:
            return self._user_integers_and_step(variable, bit_width)[1]
        index = [point["variable"] for point in self._learned].index(variable)
        row = self._learned[index]["bit_widths"].index(bit_width)
        return np.exp(ops.convert_to_numpy(self.log_steps[index])[row])

    def integers(self, variable: str, bit_width: int) -> np.ndarray:
        """Returns the integers of a kernel at a bit-width, an int32 array of its shape."""
        return self.integers_and_step(variable, bit_width)[0]

    def integers_and_step(self, variable: str, bit_width: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns what `integers` and `step` do, of a user's own quantizer by one search for a grid."""
        if variable in self.user_quantizers:
            return self._user_integers_and_step(variable, bit_width)
        weights = self._weights(variable)
        step = self.step(variable, bit_width)
        return step_fitting.weight_integers(weights, step, bit_width), step

    def clipped(self, variable: str) -> int:
        """Returns the number of weights that are -128 steps, of which `integers` makes -127.

        Kernels for some CPUs add two products in 16 bits, which two weights of -128 overflow.
        Quantizers of the user's own with `narrow_range=False` have such weights.
        """
        grid = self._user_grid(variable) if variable in self.user_quantizers else None
        return 0 if grid is None else int((grid[0] == -128).sum())

    def is_on_grid(self, variable: str) -> bool:
        """Returns whether an integer kernel can read the weights of a variable."""
        return variable not in self.user_quantizers or self._user_grid(variable) is not None

    def stored_integers_and_step(
        self, variable: str, bit_width: int, path: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns what `integers_and_step` does, for a file.

        Args:
            variable: The name of the variable.
            bit_width: The bit-width of the integers.
            path: The path of the layer, for the message.

        Raises:
            ConversionError: If a quantizer of the user's own makes weights that are on no grid.
        """
        if variable not in self.user_quantizers:
            return self.integers_and_step(variable, bit_width)
        grid = self._user_grid(variable)
        if grid is not None:
            return np.maximum(grid[0], -127), grid[1]
        has_channels = self._channel_axes(variable)
        steps = "one step for each output channel" if has_channels else "one step for all of them"
        raise ConversionError(
            f"Layer {path!r}: {self.user_quantizers[variable].description} runs on {variable!r}, "
            "but the weights that it makes are not multiples of a step, from -128 to 127, with "
            f"{steps}. The model can be trained and evaluated. For a file, give the weights a "
            "symmetric quantizer of at most 8 bits."
        )

    def observe(self) -> None:
        """Starts calibration: the layer runs in floating point."""
        self._float = True

    def calibrate(self, for_training: bool = False) -> None:
        """Ends `observe`: the layer runs with quantized kernels again.

        Args:
            for_training: Whether a training follows. If not, the quantizers of the user's own see
                the weights once, as in a training step.
        """
        self._float = False
        for name, quantizer in self.user_quantizers.items():
            if not for_training:
                quantizer(ops.cast(self.kernel(name).value, "float32"), training=True)

    def call(
        self,
        *args: Any,
        weight_decision: tf.Tensor,
        group: tf.Tensor,
        constants: Constants | None = None,
        training: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Calls the layer.

        Args:
            *args: The arguments of the layer.
            weight_decision: The decision, shape `[groups, decision points, fields]`.
            group: The group of each sample, int32, shape `[batch]`.
            constants: The arguments of the layer that are not tensors.
            training: Whether the model is training.
            **kwargs: The keyword arguments of the layer.
        """
        kwargs |= constants.values if constants else {}
        if self._float:
            return self.layer(*args, **kwargs)
        # They do not depend on the group, and a quantizer of the user's own may count its calls.
        user_kernels = {
            name: quantizer(ops.cast(self.kernel(name).value, "float32"), training=training)
            for name, quantizer in self.user_quantizers.items()
        }
        groups = weight_decision.shape[0]
        if groups == 1:
            return self._run(weight_decision[0], user_kernels, args, kwargs)
        if training and weight_decision.shape[-1] == decision_tensor.FIELDS:
            return self._run_shares(weight_decision, user_kernels, args, kwargs)
        results = [
            self._run(weight_decision[g], user_kernels, args, kwargs, groups) for g in range(groups)
        ]
        return keras.tree.map_structure(lambda *parts: _pick(parts, group), *results)

    def compute_output_spec(
        self,
        *args: Any,
        weight_decision: Any,
        group: Any,
        constants: Constants | None = None,
        training: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        kwargs |= constants.values if constants else {}
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    def _run_shares(
        self,
        weight_decision: tf.Tensor,
        user_kernels: Mapping[str, tf.Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Runs each contiguous share of a sorted batch with the kernels of its own group."""
        groups = weight_decision.shape[0]
        leaves = keras.tree.flatten((args, kwargs))
        batch = next(ops.shape(x)[0] for x in leaves if ops.is_tensor(x) and len(x.shape))
        share = batch // groups
        sizes = [share] * (groups - 1) + [batch - share * (groups - 1)]

        # The gradient of a split is one concatenation. That of slices would pad and add.
        def split(x: Any) -> list[Any]:
            if ops.is_tensor(x) and len(x.shape):
                return tf.split(x, sizes, num=groups)
            return [x] * groups

        shares = [split(x) for x in leaves]
        results = []
        for g in range(groups):
            share_args, share_kwargs = keras.tree.pack_sequence_as(
                (args, kwargs), [share[g] for share in shares]
            )
            results.append(
                self._run(weight_decision[g], user_kernels, share_args, share_kwargs, groups)
            )
        return keras.tree.map_structure(lambda *parts: ops.concatenate(parts, axis=0), *results)

    def _run(
        self,
        decision: tf.Tensor,
        user_kernels: Mapping[str, tf.Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        groups: int = 1,
    ) -> Any:
        """Calls the layer once, with kernels quantized as one group's decision says.

        Args:
            decision: The decision of the group, shape `[decision points, fields]`.
            user_kernels: The kernels that quantizers of the user's own have quantized, by name.
            args: The arguments of the layer.
            kwargs: The keyword arguments of the layer.
            groups: The number of groups, over which the losses of the layer are averaged.
        """
        mapping = [(self.kernel(name), kernel) for name, kernel in user_kernels.items()]
        for point, log_step in zip(self._learned, self.log_steps):
            kernel = self.kernel(point["variable"])
            row = decision[point["column"]]
            quantizer = kernel_quantizer(
                tuple(i for i, n in enumerate(log_step.shape[1:]) if n == 1),
                len(kernel.shape),
                tuple(point["bit_widths"]),
                row.shape[0],
            )
            weights = ops.cast(kernel.value, "float32")
            # Under a distribution strategy, a variable is no tensor.
            steps = tf.convert_to_tensor(log_step.value)
            mapping.append((kernel, quantizer(weights, steps, row)))
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            given = [scope.get_current_value(kernel) for kernel, _ in mapping]
            result = self.layer(*args, **kwargs)
        for (kernel, _), value in zip(mapping, given):
            if scope.get_current_value(kernel) is not value:
                raise ValueError(
                    f"Layer {self.layer.name!r} ({type(self.layer).__name__}) assigns {kernel.name!r} "
                    "in training, as SpectralNormalization does, and would assign quantized weights. "
                    "Put the layer inside it in its place, or keep it in floating point with "
                    "dqmq_tf.LayerRule(pattern=..., quantize=False)."
                )
        for loss in scope.losses:
            self.add_loss(loss / groups)
        replaced = {id(kernel) for kernel, _ in mapping}
        # The scope only recorded what the layer assigned (a seed, a moving mean): assign it now.
        for variable in self.layer.variables:
            value = scope.get_current_value(variable)
            if value is not None and id(variable) not in replaced:
                variable.assign(value)
        return result

    def _channel_axes(self, variable: str) -> tuple[int, ...]:
        """Returns the axes along which a variable may have a step for each index."""
        return next(tuple(p["channel_axes"]) for p in self.points if p["variable"] == variable)

    def _user_grid(self, variable: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns what `weight_grid` finds in the weights that the user's quantizer makes."""
        weights = self.user_quantizers[variable].result(self._weights(variable))
        return grid_search.weight_grid(weights, self._channel_axes(variable))

    def _user_integers_and_step(
        self, variable: str, bit_width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the integers and steps of a variable that a quantizer of the user's own has.

        Weights that are on no grid have those of the nearest one, for the cost. No file holds them,
        see `stored_integers_and_step`.
        """
        grid = self._user_grid(variable)
        if grid is not None:
            return np.maximum(grid[0], -127), grid[1]
        weights = self._weights(variable)
        axes = self._channel_axes(variable)
        (step,) = step_fitting.fit_weight_steps(weights, axes, [bit_width])
        step = np.maximum(step, 1e-12)
        return step_fitting.weight_integers(weights, step, bit_width), step

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "points": self.points,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizeWrapper":
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer, **config)


def _pick(results: Sequence[tf.Tensor], group: tf.Tensor) -> tf.Tensor:
    """Takes each sample from the result of its group."""
    picked = results[0]
    for index, result in enumerate(results[1:], start=1):
        shape = (-1,) + (1,) * (len(result.shape) - 1)
        picked = ops.where(ops.reshape(ops.equal(group, index), shape), result, picked)
    return picked
