"""Small models saved and converted by an earlier commit, and the script that made them.

Commit cd948d1, the last one before the package was divided into rooms, made the files under
`tests/data/compatibility`. To make them again, check that commit out and run, from its root:

    PYTHONPATH=. python …/tests/helpers/saved_models.py tests/data/compatibility
"""

import pathlib
import sys
import zipfile

import keras
import numpy as np

import dqmq_tf

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "data" / "compatibility"
TARGETS = ("android", "android_small", "microcontroller", "ethos_u")
layers = keras.layers


def image_network():
    """Convolutions, a shortcut and batch normalizations."""
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(x)
    x = shortcut = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.ReLU(max_value=6, name="relu6")(layers.BatchNormalization(name="norm_2")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="add")([x, shortcut]))
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="head")(x), name="image")


def signal_network():
    """Attention over a signal, with what no integer kernel runs."""
    x = inputs = keras.Input((10, 6), name="signal")
    x = layers.Conv1D(8, 3, padding="same", activation="relu", name="conv")(x)
    x = layers.Add(name="add")([x, layers.MultiHeadAttention(2, 4, name="attention")(x, x)])
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.Dense(8, activation="tanh", name="dense")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)), name="signal")


def split_network():
    """A separable and a transposed convolution around a nested model."""
    y = inner_inputs = keras.Input((4, 4, 6))
    y = layers.SeparableConv2D(6, 3, padding="same", name="separable")(y)
    inner = keras.Model(inner_inputs, layers.Activation("relu", name="act")(y), name="inner")
    x = inputs = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu6", name="conv")(x)
    x = layers.Conv2DTranspose(4, 2, strides=2, name="transposed")(inner(x))
    x = layers.MaxPooling2D(2, name="pool")(layers.LeakyReLU(0.1, name="leaky")(x))
    x = layers.Dense(3, activation="sigmoid", name="head")(layers.Flatten(name="flat")(x))
    return keras.Model(inputs, x, name="split")


NETWORKS = {"image": image_network, "signal": signal_network, "split": split_network}


def inputs_of(model, count=64):
    """Random inputs in [-1, 1]."""
    generator = np.random.default_rng(5)
    shape = (count, *model.inputs[0].shape[1:])
    return generator.uniform(-1, 1, shape).astype("float32")


def trained(name, target, profiles=1):
    """A model that has been through the search and the fine-tuning, on random data."""
    keras.utils.set_random_seed(3)
    model = NETWORKS[name]()
    generator = np.random.default_rng(4)
    for variable in model.weights:
        kind = variable.path.split("/")[-1]
        if kind in ("bias", "beta", "moving_mean"):
            variable.assign(generator.uniform(-0.3, 0.3, variable.shape))
        elif kind in ("gamma", "moving_variance"):
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
    # Bits of many kinds, whatever fits: the smallest default budget cannot be met by each of them.
    rules = [
        dqmq_tf.LayerRule(pattern=pattern, weight_bits=bits)
        for pattern, bits in {"conv": (3,), "depthwise": (5,), ".*_1": (4,), ".*": (2, 6)}.items()
    ]
    config = dqmq_tf.DQMQConfig(
        seed=0, profiles=profiles, rules=() if target == "simulation" else tuple(rules)
    )
    budget = None if target == "simulation" else dqmq_tf.Budget(size_bytes=100_000)
    qmodel = dqmq_tf.quantize_model(model, target=target, budget=budget, config=config)
    qmodel.compile(optimizer=keras.optimizers.SGD(0.01), loss="mse", jit_compile=False)
    x = inputs_of(model)
    y = generator.uniform(0, 1, (len(x), model.outputs[0].shape[-1])).astype("float32")
    qmodel.fit(x, y, batch_size=16, epochs=3, verbose=0, shuffle=False)
    return qmodel


def write_file(saved, name, folder, **options):
    """Converts a saved model and returns the file's path.

    The order of constants in a file depends on how many layers a process has named before.
    """
    keras.utils.clear_session()
    model = keras.models.load_model(saved / f"{name}.keras")
    path = folder / f"{name}.tflite"
    dqmq_tf.convert(model, path, data=inputs_of(model), verify=False, **options)
    return path


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    predictions = {}
    for name in NETWORKS:
        for target in TARGETS:
            qmodel = trained(name, target).freeze()
            x = inputs_of(qmodel)
            qmodel.save(folder / f"{name}_{target}.keras")
            predictions[f"{name}_{target}"] = qmodel.predict(x, verbose=0)
            write_file(folder, f"{name}_{target}", folder)
            print(name, target, flush=True)
    qmodel = trained("image", "android", profiles=2)
    x = inputs_of(qmodel)
    qmodel.save(folder / "adaptive_android.keras")
    write_file(folder, "adaptive_android", folder, adaptive=2)
    qmodel = trained("image", "simulation")
    qmodel.save(folder / "settled_simulation.keras")
    predictions["settled_simulation"] = qmodel.predict(x, verbose=0)
    qmodel.resume_search()
    qmodel.save(folder / "searching_simulation.keras")
    predictions["searching_simulation"] = qmodel.predict(x, verbose=0)
    np.savez_compressed(folder / "predictions.npz", **predictions)
    for path in folder.glob("*.keras"):
        with zipfile.ZipFile(path) as stored:
            contents = {name: stored.read(name) for name in stored.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as deflated:
            for name, content in contents.items():
                deflated.writestr(name, content)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
