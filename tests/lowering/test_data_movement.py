"""Layers that move, select or average values, in the lowered model and in the file."""

import keras
import pytest
from helpers.frozen_models import freeze
from helpers.networks import assert_simulates, branches, chain, frozen, names, operators, written

from dqmq_tf import graph
from dqmq_tf.errors import UnsupportedLayerError
from dqmq_tf.lowering import rules

layers = keras.layers
# Many averages of integers lie halfway between two.
TIES = 0.2
SIGNALS = {
    "exact": [
        layers.MaxPooling1D(2),
        layers.MaxPooling1D(3, strides=2, padding="same"),
        layers.ZeroPadding1D((1, 2)),
        layers.ZeroPadding1D(1),
        layers.Cropping1D((1, 2)),
        layers.UpSampling1D(2),
        layers.GlobalMaxPooling1D(),
        layers.GlobalMaxPooling1D(keepdims=True),
        layers.Permute((2, 1)),
        layers.Reshape((3, 11)),
        layers.Flatten(),
    ],
    "pools": [
        layers.AveragePooling1D(2),
        layers.AveragePooling1D(3, strides=2, padding="same"),
    ],
    "averages": [
        layers.GlobalAveragePooling1D(),
        layers.GlobalAveragePooling1D(keepdims=True),
    ],
}
IMAGES = {
    "exact": [
        layers.MaxPooling2D((2, 1)),
        layers.ZeroPadding2D(((1, 0), (2, 3))),
        layers.Cropping2D(((1, 0), (2, 1))),
        layers.UpSampling2D((2, 3)),
        layers.Resizing(5, 9, interpolation="nearest"),
        layers.GlobalMaxPooling2D(),
        layers.GlobalMaxPooling2D(keepdims=True),
        layers.Permute((3, 1, 2)),
    ],
    "pools": [
        layers.AveragePooling2D(2),
        layers.AveragePooling2D(3, strides=2, padding="same"),
    ],
    "averages": [
        layers.AveragePooling2D((8, 6)),
        layers.UpSampling2D(2, interpolation="bilinear"),
        layers.Resizing(5, 9),
        layers.GlobalAveragePooling2D(),
        layers.GlobalAveragePooling2D(keepdims=True),
    ],
}


@pytest.mark.parametrize("kind", ["exact", "pools", "averages"])
@pytest.mark.parametrize("shape, movers", [((11, 3), SIGNALS), ((8, 6, 3), IMAGES)])
def test_skeleton_and_file_do_what_the_layer_does(shape, movers, kind, tmp_path):
    # A layer in front of each, so that every output has an operator of its own.
    stacks = [
        [layers.Dense(3), type(layer).from_config(layer.get_config())] for layer in movers[kind]
    ]
    qmodel = freeze(branches(shape, *stacks))
    lowered = assert_simulates(qmodel, ties=TIES if kind == "averages" else 0.01)
    assert not lowered.float_layers
    model, report = written(qmodel, tmp_path)
    assert "TILE" not in names(model)
    for name, entered, left in operators(model):
        assert name in ("QUANTIZE", "DEQUANTIZE") or {*entered, *left} <= {"INT8", "INT32"}
    assert report.verification.different_numbers == 0
    assert report.verification.largest_quanta <= 1.01


@pytest.mark.parametrize("kind", [layers.MaxPooling2D, layers.AveragePooling2D])
def test_what_moves_values_keeps_their_grid(kind):
    qmodel = frozen((8, 6, 3), layers.Conv2D(3, 1, name="conv"), kind(2))
    lowered = assert_simulates(qmodel)
    assert lowered.quantization["a1"] == lowered.quantization["a2"]


def test_a_mean_over_everything_has_a_grid_of_its_own():
    qmodel = frozen((8, 6, 3), layers.Conv2D(3, 1), layers.AveragePooling2D((8, 6)))
    lowered = assert_simulates(qmodel)
    assert lowered.quantization["a2"].step < lowered.quantization["a1"].step


@pytest.mark.parametrize(
    "shape, stack",
    [
        ((3, 3, 3), [layers.Conv2D(4, 3), layers.GlobalAveragePooling2D()]),
        ((3, 3, 3), [layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(keepdims=True)]),
        ((3, 3), [layers.Conv1D(4, 3), layers.GlobalAveragePooling1D()]),
    ],
    ids=["image", "image, kept", "signal"],
)
def test_a_mean_over_one_position_is_that_position(shape, stack, tmp_path):
    stack = [type(layer).from_config(layer.get_config()) for layer in stack]
    qmodel = frozen(shape, *stack, layers.Dense(2))
    lowered = assert_simulates(qmodel)
    assert lowered.quantization["a1"] == lowered.quantization["a2"]
    model, report = written(qmodel, tmp_path)
    assert "MEAN" not in names(model)
    assert report.verification.largest_quanta <= 1.01


def test_what_does_nothing_at_inference_is_not_there(tmp_path):
    parts = [
        layers.Dropout(0.3), layers.SpatialDropout2D(0.3), layers.GaussianNoise(0.3),
        layers.GaussianDropout(0.3), layers.AlphaDropout(0.3), layers.ActivityRegularization(1e-3),
        layers.Identity(), layers.Activation("linear"),
    ]  # fmt: skip
    qmodel = frozen((6, 6, 3), layers.Conv2D(4, 3), *parts, layers.Conv2D(2, 1))
    assert not assert_simulates(qmodel).float_layers
    model, _ = written(qmodel, tmp_path)
    assert names(model) == ["QUANTIZE", "CONV_2D", "CONV_2D", "DEQUANTIZE"]


def test_resize_to_an_aspect_ratio_is_in_floating_point():
    resize = layers.Resizing(5, 9, crop_to_aspect_ratio=True, name="resize")
    lowered = assert_simulates(frozen((8, 6, 3), layers.Conv2D(4, 1), resize), ties=TIES)
    assert lowered.float_layers == {"resize": "a resize that crops or pads has no integer kernel"}


@pytest.mark.parametrize(
    "layer, found",
    [
        (layers.Resizing(5, 9, interpolation="bicubic", name="resize"), "'bicubic'"),
        (layers.Resizing(5, 9, interpolation="lanczos3", name="resize"), "'lanczos3'"),
        (layers.Resizing(5, 5, antialias=True, name="resize"), "antialias=True"),
        (layers.UpSampling2D(2, interpolation="bicubic", name="resize"), "'bicubic'"),
    ],
    ids=["bicubic", "lanczos", "antialias", "upsampling"],
)
def test_resize_that_no_file_has_is_refused_by_name(layer, found):
    with pytest.raises(UnsupportedLayerError, match=f"'resize'.*{found}.*'bilinear'"):
        rules.check_supported(graph.trace(chain((8, 6, 3), layer)))
