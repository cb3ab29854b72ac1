"""int8 quantization-aware training by TensorFlow Model Optimization, in a process of its own.

It needs Keras 2 (`tf_keras`), which must be chosen before TensorFlow is imported. A float network
comes in as its weights, softmax outputs for test sets go out.

    python examples/benchmarks/study/tfmot_int8.py --network=resnet8 --weights=weights.npz \\
        --data=train.npz --steps=800 --tests=tests.npz --output=outputs.npz
"""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import time

import architectures
import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from absl import app, flags

_NETWORK = flags.DEFINE_enum("network", None, ["resnet8", "mobilenet_v2"], "Network.")
_WEIGHTS = flags.DEFINE_string(
    "weights", None, "Weights of the float network (.npz), in the order of `model.get_weights()`."
)
_DATA = flags.DEFINE_string(
    "data", None, "Training data (.npz): x uint8 [steps * batch or more, 32, 32, 3], and y."
)
_STEPS = flags.DEFINE_integer("steps", None, "Training steps.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 128, "Images of a step.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", 1e-3, "First learning rate of Adam, which decays to 0 as a cosine."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all random numbers.")
_TESTS = flags.DEFINE_string(
    "tests", None, "Test sets (.npz): a_x, a_y, b_x and so on, x uint8 [n, 32, 32, 3]."
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Where to write (.npz) a, b and so on, float32 [n, 10], accuracy_a and so on, and the seconds "
    "of training.",
)

_PREDICT_BATCH = 500


def float_network():
    """Returns the float network of the flags, as a `tf_keras.Model`."""
    model = getattr(architectures, _NETWORK.value)(tf_keras)
    with np.load(_WEIGHTS.value) as file:
        model.set_weights([file[name] for name in file.files])
    return model


def training_batches():
    """Returns the batches of one pass: float32 images from 0 to 255, and labels."""
    count = _STEPS.value * _BATCH.value
    with np.load(_DATA.value) as file:
        x, y = file["x"][:count], file["y"][:count]
    if len(x) < count:
        raise app.UsageError(
            f"--data={_DATA.value}: {len(x)} images, {count} are needed for {_STEPS.value} steps."
        )
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(_BATCH.value)
    return data.map(lambda image, label: (tf.cast(image, tf.float32), label)).prefetch(2)


def set_ranges(quantized, model, images):
    """Starts the ranges of activations where the float network has them.

    TFMOT starts them at [-6, 6] and, but for the input's, moves them by a thousandth of the
    difference each step: a short training would end before they have arrived.

    Args:
        quantized: What `quantize_model` made of the float network.
        model: The float network. Its softmax is taken away.
        images: float32 `[n, 32, 32, 3]`.
    """
    # The output of the last layer is quantized before its softmax.
    model.layers[-1].activation = tf_keras.activations.linear
    probes = {layer.name: layer.output for layer in model.layers}
    values = tf_keras.Model(model.input, probes).predict_on_batch(images)
    for layer in quantized.layers:
        tensor = values.get(layer.name.removeprefix("quant_"), images)
        # As TFMOT has it, ranges contain 0.
        limits = {"min": min(0.0, tensor.min()), "max": max(0.0, tensor.max())}
        for weight in layer.weights:
            kind, _, end = weight.name.rsplit("/")[-1].removesuffix(":0").rpartition("_")
            # Ranges of kernels are taken anew at each step.
            if end in limits and not kind.endswith("kernel"):
                weight.assign(limits[end])


def train(model, batches):
    """Trains a model in place; returns the seconds that it took."""
    rate = tf_keras.optimizers.schedules.CosineDecay(_LEARNING_RATE.value, _STEPS.value)
    model.compile(
        optimizer=tf_keras.optimizers.Adam(rate),
        loss="sparse_categorical_crossentropy",
    )
    started = time.perf_counter()
    model.fit(batches, shuffle=False, verbose=0)
    return time.perf_counter() - started


def predictions(model):
    """Returns `{test set: float32 [n, classes]}` and the accuracies, `{"accuracy_" + test set}`."""
    found = {}
    with np.load(_TESTS.value) as file:
        for name in [key.removesuffix("_x") for key in file.files if key.endswith("_x")]:
            images = np.float32(file[f"{name}_x"])
            found[name] = model.predict(images, batch_size=_PREDICT_BATCH, verbose=0)
            found[f"accuracy_{name}"] = np.mean(found[name].argmax(-1) == file[f"{name}_y"])
    return found


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    tf_keras.utils.set_random_seed(_SEED.value)
    model, batches = float_network(), training_batches()
    quantized = tfmot.quantization.keras.quantize_model(model)
    images, _ = next(iter(batches))
    set_ranges(quantized, model, images.numpy())
    seconds = train(quantized, batches)
    np.savez(_OUTPUT.value, seconds=seconds, **predictions(quantized))


if __name__ == "__main__":
    flags.mark_flags_as_required(["network", "weights", "data", "steps", "tests", "output"])
    app.run(main)
