import keras
import numpy as np
import pytest

from dqmq_tf.errors import ConversionError
from dqmq_tf.graph.constant_maps import Affine
from dqmq_tf.lowering import folding
from dqmq_tf.precision import WeightPrecision


def precision(shape, axes, bit_width=4, seed=0):
    generator = np.random.default_rng(seed)
    limit = 2 ** (bit_width - 1) - 1
    steps = [n if i in axes else 1 for i, n in enumerate(shape)]
    return WeightPrecision(
        integers=generator.integers(-limit, limit + 1, shape).astype("int32"),
        step=generator.uniform(0.01, 0.1, steps).astype("float32"),
        bit_width=bit_width,
    )


def norm(channels, gamma, rank=4):
    layer = keras.layers.BatchNormalization(epsilon=0.01)
    layer.build((*[None] * (rank - 1), channels))
    generator = np.random.default_rng(1)
    layer.set_weights(
        [gamma, *generator.normal(size=(2, channels)), generator.uniform(0.5, 2, channels)]
    )
    return layer


CASES = {
    folding.CONVOLUTION: (keras.layers.Conv2D(4, 3), (3, 3, 5, 4), (3,), (2, 7, 7, 5)),
    folding.DEPTHWISE: (
        keras.layers.DepthwiseConv2D(3, depth_multiplier=2),
        (3, 3, 2, 2),
        (2, 3),
        (2, 7, 7, 2),
    ),
    folding.FULLY_CONNECTED: (keras.layers.Dense(4), (5, 4), (1,), (2, 5)),
}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("gamma", [(1.0, 2.0, 0.5, 3.0), (-1.0, 2.0, 0.0, -0.3)])
def test_fold_is_exact(kind, gamma):
    layer, shape, axes, entry = CASES[kind]
    layer = type(layer).from_config(layer.get_config())
    layer.build(entry)
    given, batch_norm = precision(shape, axes), norm(4, np.array(gamma), len(entry))
    bias = np.array([0.1, -0.2, 0.3, -0.4], "float32")
    layer.set_weights([given.integers * given.step, bias])
    x = np.random.default_rng(2).normal(size=entry).astype("float32")
    expected = batch_norm(layer(x), training=False)

    affine = folding.batch_norm_affine(batch_norm)
    folded = folding.fold_weights("path", "kernel", kind, given, bias, affine, 0.1)
    layer.set_weights([folding.keras_kernel(folded, shape), folded.bias])

    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert (folded.scales > 0).all()
    unfolded = folding.fold_weights("path", "kernel", kind, given)
    signs = np.sign(affine.multiplier).reshape(-1, *[1] * (folded.integers.ndim - 1))
    if kind == folding.DEPTHWISE:
        signs = np.sign(affine.multiplier)
    np.testing.assert_array_equal(folded.integers, unfolded.integers * signs)


def test_dead_channel_has_a_bias_that_fits_into_int32():
    given = precision((3, 3, 2, 4), (3,))
    affine = folding.batch_norm_affine(norm(4, np.array([1.0, 1e-12, 0.0, 1.0])))
    folded = folding.fold_weights(
        "path", "kernel", folding.CONVOLUTION, given, None, affine, input_step=1e-3
    )
    assert folded.coarsened >= 1
    integers = folded.bias_integers(1e-3)
    restored = integers * np.float64(1e-3) * folded.scales
    assert (np.abs(restored - folded.bias) <= 0.51e-3 * folded.scales + 1e-6).all()
    assert (np.abs(integers.astype("int64")) <= 2**30 + 1).all()


def test_affine_weights_round_nothing():
    affine = Affine(np.array([0.5, -2.0, 0.0]), np.array([1.0, 0.0, -1.0]))
    folded = folding.affine_weights("norm", "gamma", affine, 0.1)
    np.testing.assert_allclose(folded.values.ravel(), affine.multiplier, rtol=1e-6)
    assert set(np.abs(folded.integers).ravel()) <= {0, 127}


def test_step_that_varies_inside_a_channel_is_refused():
    given = precision((3, 3, 2, 4), (2, 3))
    with pytest.raises(ConversionError, match="conv/kernel.*step varies"):
        folding.fold_weights("conv", "kernel", folding.CONVOLUTION, given)


def test_integers_out_of_range_are_refused():
    given = precision((5, 4), (1,), bit_width=8)
    given = WeightPrecision(integers=given.integers, step=given.step, bit_width=3)
    with pytest.raises(ConversionError, match="3 bits allow -3 to 3"):
        folding.fold_weights("head", "kernel", folding.FULLY_CONNECTED, given)


def test_nan_is_refused():
    given = precision((5, 4), (1,))
    with pytest.raises(ConversionError, match="head/kernel.*NaN"):
        folding.fold_weights(
            "head", "kernel", folding.FULLY_CONNECTED, given, np.full(4, np.nan, "float32")
        )
