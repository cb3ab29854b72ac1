"""The networks of the comparison, defined once for both Keras 3 and tf_keras.

Layers have explicit names, because the two packages number unnamed layers differently. Weights are
exchanged between the packages by their order.
"""

import itertools

_CLASSES = 10
_SHAPE = (32, 32, 3)
_L2 = 1e-4
_MOMENTUM = 0.95
# (filters, expansion, stride) of each inverted residual block.
_BLOCKS = ((16, 1, 1), (24, 3, 2), (24, 4, 1), (40, 4, 1), (40, 4, 1), (64, 4, 2), (64, 4, 1))


def resnet8(keras, width=1):
    """Returns an untrained ResNet-8 with the same layers as that of MLPerf Tiny.

    Banbury et al., "MLPerf Tiny Benchmark", arXiv 2106.07597. Its convolutions have biases and an L2
    penalty although batch norms follow them.

    Args:
        keras: The module `keras` (version 3) or `tf_keras`.
        width: Factor for the number of filters. With 2 the network is four times the size.

    Returns:
        A model of that Keras. It maps images `[n, 32, 32, 3]`, with values from 0 to 255, to
        probabilities `[n, 10]`.
    """
    name = _Names()

    def convolution(x, filters, size=3, strides=1):
        return keras.layers.Conv2D(
            width * filters,
            size,
            strides=strides,
            padding="same",
            kernel_initializer="he_normal",
            kernel_regularizer=keras.regularizers.L2(_L2),
            name=name("conv2d"),
        )(x)

    def normalized(x):
        return keras.layers.BatchNormalization(name=name("batch_normalization"))(x)

    def relu(x):
        return keras.layers.Activation("relu", name=name("activation"))(x)

    inputs = keras.Input(_SHAPE, name="input_1")
    x = relu(normalized(convolution(inputs, 16)))
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        y = relu(normalized(convolution(x, filters, strides=strides)))
        y = normalized(convolution(y, filters))
        if strides > 1:
            x = convolution(x, filters, size=1, strides=strides)
        x = relu(keras.layers.Add(name=name("add"))([x, y]))
    x = keras.layers.AveragePooling2D(8, name="average_pooling2d")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    dense = keras.layers.Dense(
        _CLASSES, activation="softmax", kernel_initializer="he_normal", name="dense"
    )
    return keras.Model(inputs, dense(x), name="resnet8")


def mobilenet_v2(keras):
    """Returns an untrained MobileNetV2 for 32 x 32 images: narrower, and with fewer strides.

    Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv 1801.04381.

    Args:
        keras: The module `keras` (version 3) or `tf_keras`.

    Returns:
        A model of that Keras. It maps images `[n, 32, 32, 3]`, with values from 0 to 255, to
        probabilities `[n, 10]`.
    """
    layers, name = keras.layers, _Names()

    def convolution(x, filters, size=1, strides=1):
        return layers.Conv2D(
            filters, size, strides=strides, padding="same", use_bias=False, name=name("conv2d")
        )(x)

    def depthwise(x, strides):
        return layers.DepthwiseConv2D(
            3, strides=strides, padding="same", use_bias=False, name=name("depthwise_conv2d")
        )(x)

    def normalized(x):
        # The training is short, so the moving averages must adapt quickly.
        return layers.BatchNormalization(momentum=_MOMENTUM, name=name("batch_normalization"))(x)

    def relu6(x):
        return layers.ReLU(max_value=6, name=name("re_lu"))(x)

    inputs = keras.Input(_SHAPE, name="image")
    x = relu6(normalized(convolution(inputs, 16, size=3, strides=2)))
    for filters, expansion, strides in _BLOCKS:
        narrow = x
        if expansion > 1:
            x = relu6(normalized(convolution(x, expansion * x.shape[-1])))
        x = relu6(normalized(depthwise(x, strides)))
        x = normalized(convolution(x, filters))
        if strides == 1 and narrow.shape[-1] == filters:
            x = layers.Add(name=name("add"))([narrow, x])
    x = relu6(normalized(convolution(x, 128)))
    x = layers.GlobalAveragePooling2D(name="global_average_pooling2d")(x)
    outputs = layers.Dense(_CLASSES, activation="softmax", name="classes")(x)
    return keras.Model(inputs, outputs, name="mobilenet_v2")


class _Names:
    """Numbers layer names as Keras does: `conv2d`, `conv2d_1`, …"""

    def __init__(self):
        self._counters = {}

    def __call__(self, kind):
        number = next(self._counters.setdefault(kind, itertools.count()))
        return f"{kind}_{number}" if number else kind
