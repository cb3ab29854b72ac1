"""What stands for a layer that is several int8 kernels: its parts, called as the layer is.

Each class is made of a layer of a copied model and a function that names parts, and is called with
the layer's arguments. It has `kernels`, `{name of a part: {name in the whole layer: name in the
part}}`; the whole layer's weights enter the parts at the first call, which builds them.
"""

import inspect
import math

import keras

_FUSED_ACTIVATIONS = (
    keras.activations.linear,
    keras.activations.relu,
    keras.activations.relu6,
)
_WITH_ACTIVATION = (
    keras.layers.Conv1D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.Dense,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.EinsumDense,
)


def splits_activation(layer):
    """Whether a layer computes an activation that no int8 kernel with weights does."""
    return isinstance(layer, _WITH_ACTIVATION) and layer.activation not in _FUSED_ACTIVATIONS


class SplitActivation:
    """A layer with kernels, and its activation as a layer.

    Args:
        layer: A layer with kernels; its activation is taken away at the first call.
        named: `named(part)` gives the name of a part.
    """

    def __init__(self, layer, named):
        self.layer = layer
        activation = layer.activation
        name = named("activation")
        common = {"name": name, "dtype": layer.dtype_policy}
        self._weights = None
        if isinstance(activation, keras.layers.Layer):
            self._weights = activation if activation.weights else None
            self.activation = type(activation).from_config({**activation.get_config(), **common})
        else:
            self.activation = keras.layers.Activation(activation, **common)
        # A penalty on what a layer makes is one on what its activation makes.
        self.activation.activity_regularizer = layer.activity_regularizer
        self.kernels = {name: {}}

    def __call__(self, *args, **kwargs):
        self.layer.activation = keras.activations.linear
        self.layer.activity_regularizer = None
        outputs = self.activation(self.layer(*args, **kwargs))
        if self._weights is not None:
            self.activation.set_weights(self._weights.get_weights())
            self._weights = None
        return outputs


class SplitSeparable:
    """A separable convolution as a depthwise one and one over single positions.

    Args:
        layer: The layer.
        named: `named(part)` gives the name of a part.
    """

    def __init__(self, layer, named):
        self.whole = layer
        one_axis = isinstance(layer, keras.layers.SeparableConv1D)
        depthwise = keras.layers.DepthwiseConv1D if one_axis else keras.layers.DepthwiseConv2D
        pointwise = keras.layers.Conv1D if one_axis else keras.layers.Conv2D
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
            name=named("depthwise"),
            **common,
        )
        self.pointwise = pointwise(
            layer.filters,
            1,
            activation=layer.activation,
            use_bias=layer.use_bias,
            kernel_initializer=layer.pointwise_initializer,
            kernel_regularizer=layer.pointwise_regularizer,
            kernel_constraint=layer.pointwise_constraint,
            bias_initializer=layer.bias_initializer,
            bias_regularizer=layer.bias_regularizer,
            bias_constraint=layer.bias_constraint,
            activity_regularizer=layer.activity_regularizer,
            name=named("pointwise"),
            **common,
        )
        self.kernels = {
            self.depthwise.name: {"depthwise_kernel": "kernel"},
            self.pointwise.name: {"pointwise_kernel": "kernel"},
        }
        self._last = self.pointwise
        if splits_activation(self.pointwise):
            self._last = SplitActivation(self.pointwise, named)
            self.kernels |= self._last.kernels

    def __call__(self, inputs):
        outputs = self._last(self.depthwise(inputs))
        if self.whole is not None:
            depthwise, *rest = self.whole.get_weights()
            self.depthwise.set_weights([depthwise])
            self.pointwise.set_weights(rest)
            self.whole = None
        return outputs


class SplitAttention:
    """Multi-head attention as projections, products, softmax and dropout.

    Args:
        layer: The layer.
        named: `named(part)` gives the name of a part.
        lengths: Lengths of the query and of the value, None where calls differ or a size is open.
    """

    def __init__(self, layer, named, lengths):
        whole = {
            "query": layer.query_dense,
            "key": layer.key_dense,
            "value": layer.value_dense,
            "output": layer.output_dense,
        }
        self._whole = whole
        self.dense, self.kernels = {}, {}
        of_query, of_value = lengths
        for part, dense in whole.items():
            config = {**dense.get_config(), "name": named(part)}
            # The layer leaves open how long the sequence is, which what follows may have to know.
            length = of_query if part in ("query", "output") else of_value
            config["output_shape"] = (length, *config["output_shape"][1:])
            config["trainable"] = layer.trainable and dense.trainable
            self.dense[part] = keras.layers.EinsumDense.from_config(config)
            self.kernels[config["name"]] = {f"{dense.name}/kernel": "kernel"}

        def made(kind, part, *args, **kwargs):
            name = named(part)
            self.kernels[name] = {}
            return kind(*args, **kwargs, name=name, dtype=layer.dtype_policy)

        # Right behind the projection, where it folds into the kernel.
        scale = 1.0 / math.sqrt(layer.key_dim)
        self.scale = made(keras.layers.Rescaling, "scale", scale)
        # Heads are an axis of the batch in the products, which are BATCH_MATMUL then.
        self.query_heads = made(keras.layers.Permute, "query_heads", (2, 1, 3))
        self.key_heads = made(keras.layers.Permute, "key_heads", (2, 3, 1))
        self.value_heads = made(keras.layers.Permute, "value_heads", (2, 1, 3))
        self.softmax = made(keras.layers.Softmax, "softmax", axis=-1)
        self.joined = made(keras.layers.Permute, "joined", (2, 1, 3))
        self.dropout = None
        if layer.dropout > 0:
            self.dropout = made(
                keras.layers.Dropout, "dropout", layer.dropout, seed=layer.get_config()["seed"]
            )
        self.scores, self.attended = (_product(named(part)) for part in ("scores", "attended"))
        self.kernels |= {self.scores.name: {}, self.attended.name: {}}

    def __call__(self, *args, **kwargs):
        signature = inspect.signature(keras.layers.MultiHeadAttention.call)
        given = signature.bind(self, *args, **kwargs).arguments
        query, value = given["query"], given["value"]
        key = value if given.get("key") is None else given["key"]
        query = self.query_heads(self.scale(self.dense["query"](query)))
        key = self.key_heads(self.dense["key"](key))
        value = self.value_heads(self.dense["value"](value))
        weights = self.softmax(self.scores(query, key))
        if self.dropout is not None:
            training = given.get("training")
            chosen = {} if training is None else {"training": training}
            weights = self.dropout(weights, **chosen)
        outputs = self.dense["output"](self.joined(self.attended(weights, value)))
        for part, dense in self._whole.items():
            self.dense[part].set_weights(dense.get_weights())
        self._whole = {}
        return outputs


def _product(name):
    """`keras.ops.matmul` as an operation with a name of its own.

    Keras would name it by a count over the process, which may be the name of another operation in a
    model that was loaded.
    """
    a, b = keras.Input((1, 1)), keras.Input((1, 1))
    operation = keras.Model([a, b], keras.ops.matmul(a, b)).operations[-1]
    return type(operation)(name=name)
