"""Files that the web page runs, and what LiteRT computes with them in Python."""

import keras
import numpy as np
import tensorflow as tf
from helpers.frozen_models import batch_norm, freeze

import dqmq_tf
from dqmq_tf.flatbuffer import TFLiteFile
from dqmq_tf.runtimes import in_process

layers = keras.layers
SIZE = 16
COUNT = 64
LABELS = [f"thing {number}" for number in range(10)]
FED = dqmq_tf.Preprocessing(mean=[100, 110, 120], std=[50, 60, 70], color="BGR")


def network(first=(), activation="softmax"):
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((SIZE, SIZE, 3), name="image")
    for layer in first:
        x = layer(x)
    for number, filters in enumerate((8, 16)):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv_{number}")(x)
        x = layers.MaxPooling2D()(layers.ReLU()(batch_norm(10 * number)(x)))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, activation=activation, name="head")(x))


def pictures():
    """Pictures of any brightness, smooth and noisy, uint8 `[64, 16, 16, 3]`."""
    random = np.random.default_rng(0)
    smooth = tf.image.resize(random.uniform(0, 255, (COUNT, 4, 4, 3)), (SIZE, SIZE)).numpy()
    dark = smooth * random.uniform(0.2, 1, (COUNT, 1, 1, 1))
    noise = random.normal(size=dark.shape) * random.uniform(0, 60, (COUNT, 1, 1, 1))
    return np.clip(dark + noise, 0, 255).round().astype("uint8")


class Files:
    """The files that the tests run, each written when it is first needed."""

    def __init__(self, folder):
        self.folder = folder
        self.pixels = pictures()
        self.floats = self.pixels.astype("float32")
        self._contents = {}

    def __getitem__(self, name):
        if name not in self._contents:
            self._contents[name] = getattr(self, name)()
        return self._contents[name]

    def write(self, qmodel, **options):
        path = self.folder / "model.tflite"
        options.setdefault("data", self.floats)
        dqmq_tf.convert(qmodel, path, verify=False, **options)
        return path.read_bytes()

    def fed(self):
        """Pixels as the file of `static` takes them."""
        mean, std = np.array([FED.mean, FED.std], "float32")
        return (self.floats[..., ::-1] - mean) / std

    def static(self):
        data = self.fed()
        qmodel = freeze(network(activation=None), data=data)
        return self.write(qmodel, data=data, labels=LABELS, preprocessing=FED)

    def exposure(self):
        self.layer = dqmq_tf.layers.Exposure(name="exposure")
        model = network([self.layer, layers.Rescaling(1 / 255)])
        self.layer.adapt(self.floats)
        self.exposed = freeze(model, data=self.floats)
        return self.write(self.exposed)

    def plain(self):
        self.plain_model = freeze(network([layers.Rescaling(1 / 255)]), data=self.floats)
        return self.write(self.plain_model)

    def int8(self):
        self["plain"]
        return self.write(self.plain_model, io_dtype="int8")

    def int4(self):
        bits = {"conv_0": 4, "conv_1": 4, "head": 4}
        model = network([layers.Rescaling(1 / 255)])
        return self.write(freeze(model, bits, target="android_small", data=self.floats))

    def adaptive_model(self):
        qmodel = dqmq_tf.quantize_model(
            network([layers.Rescaling(1 / 255)]), budget=dqmq_tf.Budget(download_bytes=5_000)
        )
        qmodel.calibrate(self.floats)
        direction = qmodel._parts.policy.direction
        direction.assign(3.0 * np.random.default_rng(1).normal(size=direction.shape))
        qmodel.freeze(profiles=2, data=self.floats)
        assigned = qmodel._parts.policy.assigned
        changed = assigned.numpy()
        changed[0, -2] = 4  # The kernel of the second convolution.
        assigned.assign(changed)
        bits = [
            [layer["kernel"].bit_width for layer in qmodel.precision(profile).weights.values()]
            for profile in range(2)
        ]
        assert bits[0] != bits[1], "profiles with equal bits would show nothing"
        return qmodel

    def signatures(self):
        return self.write(self["adaptive_model"], adaptive=2)

    def graph(self):
        return self.write(self["adaptive_model"], adaptive=2, routing="graph")


def litert(contents, inputs):
    (outputs,) = in_process.signature_outputs(TFLiteFile.of(contents), [inputs])
    return outputs.reshape(len(inputs), -1)
