"""Trains a network with the int8 quantization-aware training of TensorFlow Model Optimization.

TFMOT needs Keras 2 (`tf_keras`), which must be selected before TensorFlow is imported, so this is a
separate script. It reads the weights of a float network, and writes the softmax outputs for the test sets.

    python examples/benchmarks/study/tfmot_int8.py --network=resnet8 --weights=weights.npz \\
        --data=train.npz --steps=800 --tests=tests.npz --output=outputs.npz
"""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import time

import external_io
import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras
from absl import app, flags


def set_ranges(quantized, model, images):
    """Initializes the ranges of activations with those of the float network.

    TFMOT starts them at [-6, 6]. Except for the input's, it moves them by a thousandth of the difference
    in each step, so a short training would end before they are right.

    Args:
        quantized: The model that TFMOT's `quantize_model` returned.
        model: The float network. Its softmax is removed.
        images: Images, float32 `[n, 32, 32, 3]`.
    """
    # The output of the last layer is quantized before its softmax.
    model.layers[-1].activation = tf_keras.activations.linear
    probes = {layer.name: layer.output for layer in model.layers}
    values = tf_keras.Model(model.input, probes).predict_on_batch(images)
    for layer in quantized.layers:
        tensor = values.get(layer.name.removeprefix("quant_"), images)
        # Ranges contain 0, as in TFMOT.
        limits = {"min": min(0.0, tensor.min()), "max": max(0.0, tensor.max())}
        for weight in layer.weights:
            kind, _, end = weight.name.rsplit("/")[-1].removesuffix(":0").rpartition("_")
            # Ranges of kernels are computed again in each step.
            if end in limits and not kind.endswith("kernel"):
                weight.assign(limits[end])


def train(model, batches):
    """Trains a model in place, and returns the time in seconds."""
    rate = tf_keras.optimizers.schedules.CosineDecay(
        external_io.LEARNING_RATE.value, external_io.STEPS.value
    )
    model.compile(
        optimizer=tf_keras.optimizers.Adam(rate),
        loss="sparse_categorical_crossentropy",
    )
    started = time.perf_counter()
    model.fit(batches, shuffle=False, verbose=0)
    return time.perf_counter() - started


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    tf_keras.utils.set_random_seed(external_io.SEED.value)
    model, batches = external_io.float_network(tf_keras), external_io.training_batches()
    quantized = tfmot.quantization.keras.quantize_model(model)
    images, _ = next(iter(batches))
    set_ranges(quantized, model, images.numpy())
    seconds = train(quantized, batches)
    np.savez(external_io.OUTPUT.value, seconds=seconds, **external_io.predictions(quantized))


if __name__ == "__main__":
    flags.mark_flags_as_required(external_io.REQUIRED)
    app.run(main)
