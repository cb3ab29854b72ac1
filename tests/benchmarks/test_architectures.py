"""The networks that are defined once for both Keras 3 and tf_keras."""

import pathlib

import keras
import numpy as np
import pytest
from study import architectures

RESNET = (
    pathlib.Path(__file__).resolve().parents[3]
    / "shared"
    / "models"
    / "mlperf_tiny"
    / "pretrainedResnet.h5"
)
MAKERS = (architectures.resnet8, architectures.mobilenet_v2)
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype("float32")


def shapes(weights):
    return [w.shape for w in weights]


def essence(layer):
    """Returns what a layer computes, without the fields that differ between versions of Keras."""
    kept = ("filters", "kernel_size", "strides", "padding", "use_bias", "activation", "units")
    kept += ("momentum", "epsilon", "pool_size")
    config = layer.get_config()
    penalty = config.get("kernel_regularizer")
    penalty = penalty and pytest.approx(penalty["config"]["l2"])
    return type(layer), layer.name, {key: config.get(key) for key in kept}, penalty


def sources(layer):
    return [tensor._keras_history.operation.name for tensor in keras.tree.flatten(layer.input)]


@pytest.mark.skipif(not RESNET.exists(), reason=f"no {RESNET}")
def test_resnet8_equals_that_of_mlperf_tiny():
    given = keras.models.load_model(RESNET, compile=False)
    made = architectures.resnet8(keras)
    assert len(made.layers) == len(given.layers)
    for ours, theirs in zip(made.layers, given.layers):
        assert essence(ours) == essence(theirs)
        assert sources(ours) == sources(theirs)
    assert shapes(made.get_weights()) == shapes(given.get_weights())
    made.set_weights(given.get_weights())
    np.testing.assert_array_equal(made.predict(IMAGES, verbose=0), given.predict(IMAGES, verbose=0))


def test_twice_the_filters_give_four_times_the_size():
    narrow, wide = (architectures.resnet8(keras, width) for width in (1, 2))
    assert [layer.name for layer in wide.layers] == [layer.name for layer in narrow.layers]
    assert 3.8 <= wide.count_params() / narrow.count_params() <= 4.0


def test_mobilenet_v2_has_linear_bottlenecks_and_four_residuals():
    model = architectures.mobilenet_v2(keras)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert [kinds.count(k) for k in ("Conv2D", "DepthwiseConv2D", "Add")] == [15, 7, 4]
    assert kinds.count("ReLU") == kinds.count("BatchNormalization") - 7
    assert model.input_shape == (None, 32, 32, 3)
    assert model.get_layer("conv2d_14").output.shape == (None, 4, 4, 128)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Add):
            assert not any("re_lu" in name for name in sources(layer)[1:])


@pytest.mark.parametrize("make", MAKERS)
def test_both_keras_packages_predict_the_same_from_the_same_weights(make):
    tf_keras = pytest.importorskip("tf_keras")
    keras.utils.set_random_seed(0)
    new, old = make(keras), make(tf_keras)
    assert [w.name for w in new.layers] == [w.name for w in old.layers]
    assert shapes(new.get_weights()) == shapes(old.get_weights())
    generator = np.random.default_rng(1)
    # All weights are random. Otherwise swapped weights of the same shape would go unnoticed.
    weights = [w + np.float32(generator.uniform(0.1, 0.2, w.shape)) for w in new.get_weights()]
    for model in (new, old):
        model.set_weights(weights)
    np.testing.assert_allclose(
        new.predict(IMAGES, verbose=0), old.predict(IMAGES, verbose=0), atol=1e-4
    )
