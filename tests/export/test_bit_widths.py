"""Weights of 2 to 8 bits of every layer type with a kernel, in the files of every target.

Every type has every bit-width in a file of `android` or `ethos_u`, and in one of the two others.
"""

import keras
import numpy as np
import pytest
from helpers.frozen_models import TABLES, freeze
from helpers.networks import IMAGE, SIGNAL, WORDS, samples

from dqmq_tf import export, flatbuffer

layers = keras.layers
TARGETS = ("android", "android_small", "microcontroller", "ethos_u")
BITS = tuple(range(2, 9))


# Layers with a kernel, by the shape of a network's input. Each pair of types becomes a chain of seven
# layers, one of each bit-width, in which the types take turns.
KERNELS = {
    "signals": (
        SIGNAL,
        {
            "Conv1D": lambda name: layers.Conv1D(6, 3, padding="same", name=name),
            "DepthwiseConv1D": lambda name: layers.DepthwiseConv1D(3, padding="same", name=name),
            "Dense": lambda name: layers.Dense(6, activation="relu", name=name),
            "EinsumDense": lambda name: layers.EinsumDense(
                "abc,dc->abd", (12, 6), bias_axes="d", name=name
            ),
        },
    ),
    "images": (
        IMAGE,
        {
            "SeparableConv2D": lambda name: layers.SeparableConv2D(4, 3, padding="same", name=name),
            "Conv2DTranspose": lambda name: layers.Conv2DTranspose(
                4, 3, padding="same", activation="relu", name=name
            ),
        },
    ),
    "recurrent": (
        (2, 6),
        {
            "LSTM": lambda name: layers.LSTM(5, return_sequences=True, name=name),
            "GRU": lambda name: layers.GRU(5, return_sequences=True, name=name),
        },
    ),
}


def kernels(shape, types, turn):
    """A network with layers of each type, and their bits by name."""
    inputs, outputs, bits = keras.Input(shape, name="entry"), [], {}
    kinds = list(types)
    for first in range(0, len(kinds), 2):
        x = inputs
        for width in BITS:
            name = f"{kinds[first + (width + turn) % 2]}_b{width}"
            x = types[name.split("_")[0]](name)(x)
            bits[f"{name}.*"] = width
        outputs.append(layers.Dense(3, name=f"head{first}")(layers.Flatten()(x)))
    return keras.Model(inputs, outputs), bits | {"head.*": 8}


def embeddings():
    """Tables of each bit-width, looked up by the same words, and these bits."""
    inputs = keras.Input((12,), dtype="int32", name="entry")
    tables = [layers.Embedding(WORDS, 8, name=f"b{width}")(inputs) for width in BITS]
    x = layers.Flatten()(layers.Concatenate()(tables))
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    return model, {f"b{width}": width for width in BITS} | {"head": 8}


def attentions():
    """Two attentions with a projection of each bit-width, and these bits."""
    inputs = x = keras.Input((4, 6), name="entry")
    for name in ("one", "two"):
        x = layers.MultiHeadAttention(2, 3, name=name)(x, x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))
    parts = [f"{name}_{part}" for name in ("one", "two") for part in ("query", "key", "value")]
    return model, dict(zip(parts, BITS)) | {".*_output": 8, "head": 8}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", [*KERNELS, "Embedding", "MultiHeadAttention"])
def test_integers_and_scales_of_every_bit_width(kind, target, tmp_path):
    keras.utils.set_random_seed(2)
    if kind in KERNELS:
        model, bits = kernels(*KERNELS[kind], turn=TARGETS.index(target) // 2)
    else:
        model, bits = {"Embedding": embeddings, "MultiHeadAttention": attentions}[kind]()
    data = samples(model)
    qmodel = freeze(model, bits, target=TABLES if target == TABLES.name else target, data=data)
    path = tmp_path / "model.tflite"
    report = export.convert(qmodel, path, data=data)
    assert report.verification.different_numbers == 0
    assert {w.bit_width for w in report.weights} == set(BITS)
    precision = qmodel.precision()
    found = flatbuffer.read(export.decompress(path.read_bytes()))
    tensors = {flatbuffer.text(t.name): t for t in found.subgraphs[0].tensors}
    # What divides an attention's scores is folded into its queries.
    held = [
        (v.integers, np.float32(v.step / np.sqrt(3) if layer_path.endswith("_query") else v.step))
        for layer_path, variables in precision.weights.items()
        for v in variables.values()
    ]
    assert len(held) == len(report.weights)
    stored = [tensors[f"w{number}"] for number in range(len(held))]
    # Whatever the layout: the same magnitudes, and the same scales.
    assert sorted(map(_magnitudes_of(found), stored)) == sorted(
        tuple(np.sort(np.abs(integers), axis=None).tolist()) for integers, _ in held
    )
    assert sorted(tuple(np.unique(t.quantization.scale).tolist()) for t in stored) == sorted(
        tuple(np.unique(step).tolist()) for _, step in held
    )
    small = [w for w in report.weights if w.bit_width <= 4 and w.operator != "TRANSPOSE_CONV"]
    if target == "android_small":
        assert all(w.container in ("INT4", "INT2") for w in small)
    if target in ("android", "ethos_u"):
        assert all(w.container == "INT8" and w.coding is None for w in report.weights)


def _magnitudes_of(model):
    def magnitudes(tensor):
        values = np.abs(flatbuffer.constant(model, tensor).astype(int))
        return tuple(np.sort(values, axis=None).tolist())

    return magnitudes
