"""Small networks, frozen at chosen bit-widths."""

import dataclasses

import keras
import numpy as np

import dqmq_tf

layers = keras.layers
# The networks of the tests are too small for lookup tables to save more than their decoder takes.
MICRO = dqmq_tf.targets.get("microcontroller")
TABLES = dataclasses.replace(MICRO, decoder_bytes=0, codings=("table",))


def batch_norm(seed, scale=True):
    """A batch normalization with statistics that change something."""
    random = keras.initializers.RandomUniform
    return layers.BatchNormalization(
        scale=scale,
        gamma_initializer=random(0.5, 1.5, seed=seed),
        beta_initializer=random(-0.5, 0.5, seed=seed + 1),
        moving_mean_initializer=random(-0.3, 0.3, seed=seed + 2),
        moving_variance_initializer=random(0.5, 2.0, seed=seed + 3),
    )


def images(model, count=128, seed=0):
    """Random inputs of a model: an array, or a list of arrays for several inputs."""
    generator = np.random.default_rng(seed)
    arrays = [
        generator.uniform(-1, 1, (count, *entry.shape[1:])).astype("float32")
        for entry in model.inputs
    ]
    return arrays if len(arrays) > 1 else arrays[0]


def freeze(model, bits=None, target="android", profiles=1, keep=(), data=None):
    """A calibrated, frozen `DQMQModel`.

    Args:
        model: Keras model.
        bits: `{layer name: bit-width}`; 6 for all others.
        target: Deployment target, a name or a `Target`.
        profiles: Number of precision profiles.
        keep: Names of layers to leave in floating point.
        data: What to calibrate on; random inputs if None.
    """
    rules = [dqmq_tf.LayerRule(pattern=name, quantize=False) for name in keep]
    for name, width in (bits or {}).items():
        rules.append(dqmq_tf.LayerRule(pattern=name, weight_bits=(width,)))
    rules.append(dqmq_tf.LayerRule(pattern=".*", weight_bits=(6,)))
    qmodel = dqmq_tf.quantize_model(
        model,
        target=target,
        budget=dqmq_tf.Budget(size_bytes=10**7),
        config=dqmq_tf.DQMQConfig(rules=tuple(rules)),
    )
    qmodel.calibrate(images(model) if data is None else data)
    qmodel.freeze(profiles=profiles)
    return qmodel


def small_model():
    """Convolution, batch norm, relu and a classifier with softmax."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.ReLU()(batch_norm(1)(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="head")(x))


def every_bit_width_model():
    """A convolution, a depthwise convolution and a dense layer for each bit-width of 2 to 8."""
    keras.utils.set_random_seed(2)
    inputs = x = keras.Input((8, 8, 16), name="image")
    bits = {}
    for width in range(2, 9):
        x = layers.Conv2D(16, 3, padding="same", use_bias=False, name=f"conv{width}")(x)
        x = layers.ReLU()(batch_norm(width)(x))
        x = layers.DepthwiseConv2D(3, padding="same", name=f"depthwise{width}")(x)
        x = layers.ReLU(max_value=6)(batch_norm(10 * width)(x))
        bits |= {f"conv{width}": width, f"depthwise{width}": width}
    x = layers.Flatten()(layers.AveragePooling2D(4)(x))
    for width in range(2, 9):
        bias = keras.initializers.RandomUniform(-0.3, 0.3, seed=width)
        x = layers.Dense(64, activation="relu", bias_initializer=bias, name=f"dense{width}")(x)
        bits[f"dense{width}"] = width
    return keras.Model(inputs, layers.Dense(3, name="head")(x)), bits
