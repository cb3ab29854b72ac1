"""Trains a network with HGQ2, which learns bits by gradients together with the weights.

Sun et al., "Gradient-based Automatic Mixed Precision Quantization for Neural Networks On-Chip",
arXiv 2405.00645. The loss has a penalty: beta times EBOPs, the sum of weight bits times activation
bits over all multiplications. HGQ2 needs its own environment, so this is a separate script. It reads the
weights of a float network, and writes the softmax outputs for the test sets.

    python examples/benchmarks/study/hgq2.py --network=resnet8 --weights=weights.npz \\
        --data=train.npz --steps=600 --mean_bits=3 --tests=tests.npz --output=outputs.npz

Every weight has its own bits and range, which is HGQ2's default. The position of its binary point costs
nothing, whereas the integer kernels of other methods have one range per channel. Every channel of
activations has its own bits and range as well, the same at all positions of the kernel. Weights saturate
symmetrically, activations saturate. Convolutions, additions and the dense layer are HGQ2's layers; batch
norms and biases stay float. A quantizer consists of a dozen small operations on a large tensor, which XLA
fuses into one.

EBOPs differ from what a budget counts: HGQ2 omits the sign of a weight and products with padding, and
includes additions. So EBOPs are the penalty, as in HGQ2, but `bit_operations` must meet the budget.
"""

import math
import time

import external_io
import hgq.utils.sugar
import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from hgq.config import QuantizerConfig

_MEAN_BITS = flags.DEFINE_float(
    "mean_bits", None, "Budget: the square root of bit operations per MAC.", lower_bound=1.0
)

# The training is short. So the bits start this far above the budget's mean, and have their own learning
# rate, which can change them by 0.01 per step, or 6 bits in 600 steps.
_BITS_ABOVE = 1
_BIT_LEARNING_RATE = 0.02
# The logarithm of the cost should fall linearly during the first _FALLING of the steps, until the cost
# is _ROOM times the budget. Then it should stay constant.
_FALLING = 0.5
_ROOM = 0.985
# Initial penalty in the loss, and the proportional and integral gains for the logarithm of beta.
_FIRST_PENALTY = 0.3
_PROPORTIONAL, _INTEGRAL = 2.0, 0.1
# Smaller magnitudes count as 0 and have no range.
_SMALLEST = 2.0**-12


def quantized(model):
    """Returns a float network with HGQ2's layers and the same weights. Call `set_bits` next."""

    def converted(layer):
        dense = isinstance(layer, keras.layers.Dense)
        axes = (0,) if dense else (0, 1, 2)
        inputs = QuantizerConfig("kif", "datalane", overflow_mode="SAT", homogeneous_axis=axes)
        if isinstance(layer, keras.layers.Add):
            return hgq.layers.QAdd(iq_confs=inputs, name=layer.name)
        options = {
            "kq_conf": QuantizerConfig("kbi", "weight", overflow_mode="SAT_SYM"),
            "bq_conf": QuantizerConfig("dummy", "bias"),
            "iq_conf": inputs,
            "name": layer.name,
        }
        if dense:
            return hgq.layers.QDense(layer.units, activation=layer.activation, **options)
        if isinstance(layer, keras.layers.Conv2D):
            return hgq.layers.QConv2D(
                layer.filters,
                layer.kernel_size,
                strides=layer.strides,
                padding=layer.padding,
                kernel_regularizer=layer.kernel_regularizer,
                **options,
            )
        if hasattr(layer, "kernel"):
            raise TypeError(f"{layer.name}: HGQ2 has no {type(layer).__name__}.")
        return type(layer).from_config(layer.get_config())

    network = keras.models.clone_model(model, clone_function=converted)
    for layer in model.layers:
        copies = {variable.name: variable for variable in network.get_layer(layer.name).weights}
        for variable in layer.weights:
            copies[variable.name].assign(variable)
    return network


def kernel_layers(network):
    """Returns the layers that multiply by weights."""
    return [layer for layer in network.layers if hasattr(layer, "kq")]


def input_quantizers(network):
    """Returns a list of `(quantizer, name of its layer, index of the layer's input)`."""
    found = []
    for layer in network.layers:
        if isinstance(layer, hgq.layers.QAdd):
            found += [(quantizer, layer.name, i) for i, quantizer in enumerate(layer.iq)]
        elif hasattr(layer, "iq"):
            found.append((layer.iq, layer.name, 0))
    return found


def set_bits(network, model, images, bits):
    """Gives all quantizers the same bits, and ranges that contain the values of the float network.

    Args:
        network: The network that `quantized` returned.
        model: The float network.
        images: Images, float32 `[n, 32, 32, 3]`.
        bits: Number of bits, including the sign.
    """
    quantizers = input_quantizers(network)
    read = [keras.tree.flatten(model.get_layer(name).input)[i] for _, name, i in quantizers]
    values = keras.Model(model.input, read).predict(images, verbose=0)
    for (quantizer, *_), value in zip(quantizers, values):
        axes = tuple(range(value.ndim - 1))
        signed = float(value.min() < 0)
        integer_bits = _integer_bits(np.abs(value).max(axis=axes, keepdims=True))
        _assign(quantizer, k=signed, i=integer_bits, f=bits - signed - integer_bits)
    for layer in kernel_layers(network):
        kernel = np.abs(keras.ops.convert_to_numpy(layer.kernel))
        _assign(layer.kq, k=1.0, i=_integer_bits(kernel), b=bits - 1.0)


def _integer_bits(magnitude):
    """Returns the bits before the binary point for a magnitude, without sign; negative if it is small."""
    return np.ceil(np.log2(np.maximum(magnitude, _SMALLEST)))


def _assign(quantizer, **values):
    for variable in quantizer.quantizer.variables:
        if variable.name in values:
            variable.assign(np.broadcast_to(values[variable.name], variable.shape))


def bit_operations(network):
    """Returns weight bits, including the sign, times activation bits, summed over the MACs of an image."""
    total = 0.0
    for layer in kernel_layers(network):
        # With symmetric saturation HGQ2 does not count the sign. A weight of 0 bits needs no sign.
        weights = keras.ops.convert_to_numpy(layer.kq.bits_(layer.kernel.shape))
        weights = weights + (weights > 0)
        inputs = keras.ops.convert_to_numpy(layer.iq.bits).ravel()
        total += _places(layer) * float((weights.sum(axis=-1) * inputs).sum())
    return total


def macs(network):
    """Returns the multiply-accumulates of an image, including those with padding."""
    return sum(_places(layer) * math.prod(layer.kernel.shape) for layer in kernel_layers(network))


def _places(layer):
    """Returns how often a layer applies its kernel to an image."""
    return math.prod(layer.output.shape[1:-1])


class Beta:
    """Controls beta, the weight of the penalty, so that the bit operations reach the budget.

    Args:
        network: A network that `set_bits` has prepared.
        budget: Number of bit operations.
        steps: Number of training steps.
    """

    def __init__(self, network, budget, steps):
        self.network, self.steps = network, steps
        self.first = bit_operations(network)
        self.fall = math.log(_ROOM * budget / self.first)
        self.integral = math.log(_FIRST_PENALTY / self.first)
        self.value = None
        self.scheduler = hgq.utils.sugar.BetaScheduler(lambda step: self.value)
        self.scheduler.set_model(network)

    def update(self, step):
        """Sets beta for a step."""
        aim = math.log(self.first) + self.fall * min(1.0, step / (_FALLING * self.steps))
        # A network in which all bits are 0 would have no logarithm.
        excess = math.log(max(bit_operations(self.network), 1.0)) - aim
        self.integral += _INTEGRAL * excess
        self.value = math.exp(self.integral + _PROPORTIONAL * excess)
        self.scheduler.on_epoch_begin(step)


def train(network, batches, beta):
    """Trains weights and bits in place, and returns the time in seconds."""
    quantizers = [quantizer for quantizer, *_ in input_quantizers(network)]
    quantizers += [layer.kq for layer in kernel_layers(network)]
    bits = [variable for q in quantizers for variable in q.trainable_variables]
    paths = {variable.path for variable in bits}
    weights = [variable for variable in network.trainable_variables if variable.path not in paths]
    trained = []
    for variables, rate in ((weights, external_io.LEARNING_RATE.value), (bits, _BIT_LEARNING_RATE)):
        schedule = keras.optimizers.schedules.CosineDecay(rate, external_io.STEPS.value)
        optimizer = keras.optimizers.Adam(schedule)
        optimizer.build(variables)
        trained.append((optimizer, variables))

    @tf.function(jit_compile=True)
    def step(images, labels):
        with tf.GradientTape() as tape:
            outputs = network(images, training=True)
            losses = keras.losses.sparse_categorical_crossentropy(labels, outputs)
            loss = tf.reduce_mean(losses) + tf.add_n(network.losses)
        gradients = tape.gradient(loss, [variables for _, variables in trained])
        for (optimizer, variables), found in zip(trained, gradients):
            optimizer.apply(found, variables)

    started = time.perf_counter()
    for number, (images, labels) in enumerate(batches):
        beta.update(number)
        step(images, labels)
    return time.perf_counter() - started


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    keras.utils.set_random_seed(external_io.SEED.value)
    model, batches = external_io.float_network(keras), external_io.training_batches()
    images = next(iter(batches))[0].numpy()
    network = quantized(model)
    budget = _MEAN_BITS.value**2 * macs(network)
    set_bits(network, model, images, math.ceil(_MEAN_BITS.value) + _BITS_ABOVE)
    seconds = train(network, batches, Beta(network, budget, external_io.STEPS.value))
    network.compile(jit_compile=True)
    found = {
        "seconds": seconds,
        "bit_ops": bit_operations(network),
        # This only traces the network: it neither trains nor widens a range, since all saturate.
        "ebops": hgq.utils.trace_minmax(network, images, reset=False),
        **external_io.predictions(network),
    }
    np.savez(external_io.OUTPUT.value, **found)
    if found["bit_ops"] > budget:
        raise RuntimeError(
            f"{found['bit_ops']:.4g} bit operations exceed a budget of {budget:.4g}."
        )


if __name__ == "__main__":
    flags.mark_flags_as_required([*external_io.REQUIRED, "mean_bits"])
    app.run(main)
