"""Quantizes, trains, converts and verifies a small network with the package that is installed.

It needs nothing but the package's requirements, so that it runs with any versions of them.
"""

import importlib.metadata
import sys
import tempfile

import keras
import numpy as np

import dqmq_tf
from dqmq_tf import quality


def main() -> None:
    """Runs the steps, and prints versions and results."""
    names = ("tensorflow", "keras", "numpy", "ai-edge-litert", "litert-quantizer", "flatbuffers")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print(f"Python {sys.version.split()[0]}: {versions}")
    keras.utils.set_random_seed(0)
    labels = np.arange(128) % 2
    noise = np.random.default_rng(0).uniform(0, 80, (128, 8, 8, 3))
    # Images of class 1 have a bright left half.
    noise[labels == 1, :, :4] += 120
    images = quality.degrade(noise.astype("uint8"), "contrast", 2, seed=0).numpy()
    images = images.astype("float32")
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 3), name="image"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(6, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.8),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(4),
            keras.layers.Flatten(),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    budget = dqmq_tf.Budget(download_bytes=4_000)
    qmodel = dqmq_tf.quantize_model(model, target="android", budget=budget)
    qmodel.compile(
        keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    qmodel.fit(images, labels, epochs=6, batch_size=16, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        qmodel.save(f"{folder}/model.keras")
        qmodel = keras.models.load_model(f"{folder}/model.keras")
        path = f"{folder}/model.tflite"
        conversion = dqmq_tf.convert(qmodel, path, data=images)
        report = dqmq_tf.verify(qmodel, path, data=images)
    accuracy = (qmodel.predict(images, verbose=0).argmax(axis=-1) == labels).mean()
    assert accuracy > 0.9, accuracy
    assert report.different_numbers == 0
    agreements = {row.runtime: row.top1_agreement for row in report.rows if row.ran}
    assert agreements and min(agreements.values()) >= 0.98, agreements
    print(
        f"accuracy {100 * accuracy:.1f} %, {conversion.download_bytes:,} download bytes, "
        f"{report.different_numbers} of {report.checked_numbers} numbers differ, top-1 agreement "
        + ", ".join(f"{name} {100 * share:.1f} %" for name, share in agreements.items())
    )


if __name__ == "__main__":
    main()
