"""Replacements for a layer that is several int8 kernels: its parts, called as the layer is.

Each class takes a layer of a copied model and a function that names parts, and is called with the
layer's arguments. Its attribute `kernels` is `{name of a part: {name in the whole layer: name in
the part}}`. The first call builds the parts and copies the weights of the whole layer into them.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from dqmq_tf.graph.cloning import clone_layer, copy_state, is_from_keras
from dqmq_tf.graph.kernels import is_linear, kernel_variables

FUSED_ACTIVATIONS = (
    keras.activations.linear,
    keras.activations.relu,
    keras.activations.relu6,
)
# Layers of which each output depends on the last axis alone.
_ON_THE_LAST_AXIS = (keras.layers.Dense, keras.layers.Activation, keras.layers.ReLU)
_RESHAPING = (keras.layers.Flatten, keras.layers.Reshape)


def splits_activation(layer: Any) -> bool:
    """Whether a layer computes an activation that no int8 kernel with weights computes."""
    # A `call` of the user's own may do more behind the activation.
    is_known = is_linear(layer) and is_from_keras(type(layer).call)
    return is_known and layer.activation not in FUSED_ACTIVATIONS


def is_depthwise(layer: Any) -> bool:
    """Whether a convolution in groups has one input channel per group, as a depthwise one has."""
    if type(layer) not in (keras.layers.Conv1D, keras.layers.Conv2D) or layer.groups == 1:
        return False
    # A depthwise convolution has no causal padding, and equal strides.
    fits = layer.padding != "causal" and len(set(layer.strides)) == 1
    # A regularizer of the user's own may depend on the shape of the kernel, as a constraint does.
    regularizer = layer.kernel_regularizer
    fits = fits and (regularizer is None or is_from_keras(type(regularizer)))
    return fits and layer.kernel.shape[-2] == 1 and layer.kernel_constraint is None


class SplitLayer(keras.layers.Layer):
    """Base class of layers that name the layers which they are made of.

    `call(x)` returns `compute(self.parts(), x)`. The weights are those of the parts.
    """

    def parts(self) -> dict[str, keras.layers.Layer]:
        """Returns `{name: layer}` of the parts, in the order in which they run."""
        raise NotImplementedError

    @staticmethod
    def compute(parts: Mapping[str, Any], x: Any) -> Any:
        """Returns the output for an input, computed by parts of the names in `parts()`."""
        raise NotImplementedError


class SplitParts:
    """The parts of a `SplitLayer`.

    Args:
        layer: The layer.
        name_part: `name_part(part)` returns the name of a part.
    """

    def __init__(self, layer: SplitLayer, name_part: Callable[[str], str]) -> None:
        self._sources = layer.parts()
        self._compute = layer.compute
        self._parts: dict[str, Any] = {}
        self.kernels: dict[str, dict[str, str]] = {}
        for key, part in self._sources.items():
            name = name_part(key)
            self._parts[key] = clone_layer(part, name=name)
            if not layer.trainable:
                self._parts[key].trainable = False
            kernels = kernel_variables(part)
            self.kernels[name] = {f"{part.name}/{kernel}": kernel for kernel in kernels}

    def __call__(self, x: Any) -> Any:
        outputs = self._compute(self._parts, x)
        for key, part in self._sources.items():
            copy_state(part, self._parts[key])
        self._sources = {}
        return outputs


class SplitActivation:
    """A layer with kernels, and its activation as a layer.

    Args:
        layer: A layer with kernels. The first call removes its activation.
        name_part: `name_part(part)` returns the name of a part.
        activation: The activation. None for that of the layer.
    """

    def __init__(self, layer: Any, name_part: Callable[[str], str], activation: Any = None) -> None:
        self.layer = layer
        activation = layer.activation if activation is None else activation
        name = name_part("activation")
        common = {"name": name, "dtype": layer.dtype_policy}
        self._source = None
        if isinstance(activation, keras.layers.Layer):
            self._source = activation
            self.activation = clone_layer(activation, lambda config: {**config, **common}, name)
            if layer.built and activation.weights:
                # Keras would count them among the weights of the layer for good.
                self.layer = clone_layer(layer, _without_activation)
                copy_state(layer, self.layer)
        else:
            self.activation = keras.layers.Activation(activation, **common)
        # A penalty on the output of the layer is one on the output of its activation.
        self.activation.activity_regularizer = layer.activity_regularizer
        self.kernels: dict[str, dict[str, str]] = {name: {}}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.layer.activation = keras.activations.linear
        self.layer.activity_regularizer = None
        outputs = self.activation(self.layer(*args, **kwargs))
        if self._source is not None:
            # Keras builds the activation of a layer when the layer first gets data.
            if self._source.weights or not self.activation.weights:
                copy_state(self._source, self.activation)
            self._source = None
        return outputs


def _without_activation(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "activation": "linear"} if "activation" in config else config


class SplitGroups:
    """A convolution in groups of one input channel each as a depthwise convolution of its name.

    Args:
        layer: The layer (see `is_depthwise`).
        name_part: `name_part(part)` returns the name of a part.
    """

    def __init__(self, layer: Any, name_part: Callable[[str], str]) -> None:
        self._whole: Any = layer
        is_1d = isinstance(layer, keras.layers.Conv1D)
        depthwise = keras.layers.DepthwiseConv1D if is_1d else keras.layers.DepthwiseConv2D
        self.depthwise = depthwise(
            layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            depth_multiplier=layer.filters // layer.groups,
            data_format=layer.data_format,
            dilation_rate=layer.dilation_rate,
            activation=layer.activation,
            use_bias=layer.use_bias,
            depthwise_initializer=layer.kernel_initializer,
            bias_initializer=layer.bias_initializer,
            depthwise_regularizer=layer.kernel_regularizer,
            bias_regularizer=layer.bias_regularizer,
            activity_regularizer=layer.activity_regularizer,
            bias_constraint=layer.bias_constraint,
            name=layer.name,
            dtype=layer.dtype_policy,
            trainable=layer.trainable,
        )
        self._call: Any = self.depthwise
        self.kernels: dict[str, dict[str, str]] = {}
        if splits_activation(self.depthwise):
            self._call = SplitActivation(self.depthwise, name_part)
            self.kernels = self._call.kernels

    def __call__(self, x: Any, **kwargs: Any) -> Any:
        outputs = self._call(x, **kwargs)
        if self._whole is not None:
            kernel = keras.ops.reshape(self._whole.kernel, self.depthwise.kernel.shape)
            self.depthwise.kernel.assign(kernel)
            if self.depthwise.use_bias:
                self.depthwise.bias.assign(self._whole.bias)
            self._whole = None
        return outputs


def is_same_for_all_steps(layer: Any) -> bool:
    """Whether a `TimeDistributed` layer computes what a layer computes for all steps at once."""
    if type(layer) is not keras.layers.TimeDistributed:
        return False
    # For a function of the user's own, the first axis may be that of the features.
    activation = getattr(layer.layer, "activation", keras.activations.linear)
    is_known = inspect.isfunction(activation) and is_from_keras(activation)
    is_known = is_known and getattr(layer.layer, "data_format", None) != "channels_first"
    return is_known and type(layer.layer) in (*_ON_THE_LAST_AXIS, *_RESHAPING)


class SplitSteps:
    """A layer that is called for each time step as one for all steps, of the name of the wrapper.

    Args:
        layer: The wrapper (see `is_same_for_all_steps`).
        name_part: `name_part(part)` returns the name of a part.
    """

    def __init__(self, layer: Any, name_part: Callable[[str], str]) -> None:
        inner = layer.layer
        self._whole: Any = layer
        self._part: Any = None
        self.kernels: dict[str, dict[str, str]] = {}
        if isinstance(inner, _RESHAPING):
            return
        part = clone_layer(inner, name=layer.name)
        copy_state(inner, part)
        part.trainable = layer.trainable and inner.trainable
        # Keras does not penalize what the inner layer puts out.
        part.activity_regularizer = layer.activity_regularizer
        self._part = part
        if splits_activation(part):
            self._part = SplitActivation(part, name_part)
            self.kernels = self._part.kernels

    def __call__(self, x: Any, training: bool | None = None, mask: None = None) -> Any:
        if self._part is None:
            steps, *shape = self._whole.compute_output_shape(x.shape)[1:]
            shape = [-1 if steps is None else steps, *shape]
            self._part = keras.layers.Reshape(shape, name=self._whole.name, dtype=x.dtype)
        return self._part(x)


class SplitSeparable:
    """A separable convolution as a depthwise convolution and a convolution of single positions.

    Args:
        layer: The layer.
        name_part: `name_part(part)` returns the name of a part.
    """

    def __init__(self, layer: Any, name_part: Callable[[str], str]) -> None:
        self._whole: Any = layer
        is_1d = isinstance(layer, keras.layers.SeparableConv1D)
        depthwise = keras.layers.DepthwiseConv1D if is_1d else keras.layers.DepthwiseConv2D
        pointwise = keras.layers.Conv1D if is_1d else keras.layers.Conv2D
        common = {
            "data_format": layer.data_format,
            "dtype": layer.dtype_policy,
            "trainable": layer.trainable,
        }
        self.depthwise = depthwise(
            layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            depth_multiplier=layer.depth_multiplier,
            dilation_rate=layer.dilation_rate,
            use_bias=False,
            depthwise_initializer=layer.depthwise_initializer,
            depthwise_regularizer=layer.depthwise_regularizer,
            depthwise_constraint=layer.depthwise_constraint,
            name=name_part("depthwise"),
            **common,
        )
        is_fused = layer.activation in FUSED_ACTIVATIONS
        self.pointwise = pointwise(
            layer.filters,
            1,
            activation=layer.activation if is_fused else None,
            use_bias=layer.use_bias,
            kernel_initializer=layer.pointwise_initializer,
            kernel_regularizer=layer.pointwise_regularizer,
            kernel_constraint=layer.pointwise_constraint,
            bias_initializer=layer.bias_initializer,
            bias_regularizer=layer.bias_regularizer,
            bias_constraint=layer.bias_constraint,
            activity_regularizer=layer.activity_regularizer,
            name=name_part("pointwise"),
            **common,
        )
        self.kernels: dict[str, dict[str, str]] = {
            self.depthwise.name: {"depthwise_kernel": "kernel"},
            self.pointwise.name: {"pointwise_kernel": "kernel"},
        }
        self._last = self.pointwise
        if not is_fused:
            self._last = SplitActivation(self.pointwise, name_part, layer.activation)
            self.kernels |= self._last.kernels

    def __call__(self, inputs: Any) -> Any:
        outputs = self._last(self.depthwise(inputs))
        if self._whole is not None:
            weights = self._whole.get_weights()
            self.depthwise.set_weights(weights[:1])
            # Those of an activation come last.
            self.pointwise.set_weights(weights[1 : 1 + len(self.pointwise.weights)])
            self._whole = None
        return outputs


class SplitMerge:
    """A sum or product of several tensors as layers of two tensors each. The last is the layer.

    Args:
        layer: An `Add` or `Multiply` layer.
        name_part: `name_part(part)` returns the name of a part.
        count: The largest number of tensors in a call.
    """

    def __init__(self, layer: Any, name_part: Callable[[str], str], count: int) -> None:
        self._layer = layer
        self._first = [
            type(layer)(name=name_part(str(number)), dtype=layer.dtype_policy)
            for number in range(1, count - 1)
        ]
        self.kernels: dict[str, dict[str, str]] = {part.name: {} for part in self._first}

    def __call__(self, inputs: Sequence[Any]) -> Any:
        result, *others, last = inputs
        for part, other in zip(self._first, others):
            result = part([result, other])
        return self._layer([result, last])


class SplitAttention:
    """Multi-head attention as projections, products, softmax and dropout.

    Args:
        layer: The layer.
        name_part: `name_part(part)` returns the name of a part.
        lengths: The lengths of the query and of the value. None if calls differ or the size is
            not known.
    """

    def __init__(
        self, layer: Any, name_part: Callable[[str], str], lengths: Sequence[int | None]
    ) -> None:
        self._whole: dict[str, Any] = {
            "query": layer.query_dense,
            "key": layer.key_dense,
            "value": layer.value_dense,
            "output": layer.output_dense,
        }
        self.dense: dict[str, Any] = {}
        self.kernels: dict[str, dict[str, str]] = {}
        query_length, value_length = lengths
        for part, dense in self._whole.items():
            config = {**dense.get_config(), "name": name_part(part)}
            # Keras leaves out the length of the sequence, but later layers may need it.
            length = query_length if part in ("query", "output") else value_length
            config["output_shape"] = (length, *config["output_shape"][1:])
            config["trainable"] = layer.trainable and dense.trainable
            self.dense[part] = keras.layers.EinsumDense.from_config(config)
            self.kernels[config["name"]] = {f"{dense.name}/kernel": "kernel"}

        def make_part(kind: Callable[..., Any], part: str, *args: Any, **kwargs: Any) -> Any:
            name = name_part(part)
            self.kernels[name] = {}
            return kind(*args, **kwargs, name=name, dtype=layer.dtype_policy)

        # Directly after the projection, it folds into the kernel.
        scale = 1.0 / math.sqrt(layer.key_dim)
        self.scale = make_part(keras.layers.Rescaling, "scale", scale)
        # In the products heads are an axis of the batch, so that they become BATCH_MATMUL.
        self.query_heads = make_part(keras.layers.Permute, "query_heads", (2, 1, 3))
        self.key_heads = make_part(keras.layers.Permute, "key_heads", (2, 3, 1))
        self.value_heads = make_part(keras.layers.Permute, "value_heads", (2, 1, 3))
        self.softmax = make_part(keras.layers.Softmax, "softmax", axis=-1)
        self.joined = make_part(keras.layers.Permute, "joined", (2, 1, 3))
        self.dropout = None
        if layer.dropout > 0:
            seed = layer.get_config()["seed"]
            self.dropout = make_part(keras.layers.Dropout, "dropout", layer.dropout, seed=seed)
        self.scores, self.attended = (_product(name_part(p)) for p in ("scores", "attended"))
        self.kernels |= {self.scores.name: {}, self.attended.name: {}}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        signature = inspect.signature(keras.layers.MultiHeadAttention.call)
        arguments = signature.bind(self, *args, **kwargs).arguments
        query, value = arguments["query"], arguments["value"]
        key = value if arguments.get("key") is None else arguments["key"]
        query = self.query_heads(self.scale(self.dense["query"](query)))
        key = self.key_heads(self.dense["key"](key))
        value = self.value_heads(self.dense["value"](value))
        weights = self.softmax(self.scores(query, key))
        if self.dropout is not None:
            training = arguments.get("training")
            switches = {} if training is None else {"training": training}
            weights = self.dropout(weights, **switches)
        outputs = self.dense["output"](self.joined(self.attended(weights, value)))
        for part, dense in self._whole.items():
            self.dense[part].set_weights(dense.get_weights())
        self._whole = {}
        return outputs


def _product(name: str) -> Any:
    """Returns `keras.ops.matmul` as an operation with the given name.

    Keras names operations by a count over the process. That name may be taken by another operation
    in a model that was loaded.
    """
    a, b = keras.Input((1, 1)), keras.Input((1, 1))
    operation = keras.Model([a, b], keras.ops.matmul(a, b)).operations[-1]
    return type(operation)(name=name)
