import re

import keras
import numpy as np
import pytest
from keras import layers, ops

import dqmq_tf
from dqmq_tf.config import DQMQConfig, LayerRule
from dqmq_tf.layers import QuantizeWrapper
from dqmq_tf.tfmot.annotate import (
    QuantizeAnnotate,
    quantize_annotate_layer,
    quantize_annotate_model,
    quantize_apply,
)

ALL = (2, 3, 4, 5, 6, 7, 8)


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(1)


@pytest.fixture
def images():
    return np.random.default_rng(0).random([8, 6, 6, 2], dtype="float32")


def convolution(name, **kwargs):
    return layers.Conv2D(3, 3, padding="same", name=name, **kwargs)


def sequential(*body):
    return keras.Sequential([keras.Input((6, 6, 2), name="pixels"), *body], name="small")


def test_the_annotation_of_a_half_precision_model_keeps_the_types_of_its_inputs(images):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = quantize_annotate_layer(convolution("conv", dtype="float32"))
    finally:
        keras.config.set_dtype_policy("float32")
    assert layer.dtype_policy.name == "float32"
    outputs = layer(images)
    assert outputs.dtype == "float32"
    np.testing.assert_array_equal(outputs, layer.layer(images))
    assert QuantizeAnnotate.from_config(layer.get_config()).dtype_policy.name == "float32"


def network(annotate=lambda layer: layer):
    """Returns a network with a batch norm, a shortcut that an operation adds, and a softmax."""
    pixels = keras.Input((6, 6, 2), name="pixels")
    x = annotate(convolution("first"))(pixels)
    x = layers.BatchNormalization(name="norm")(x)
    x = shortcut = layers.ReLU(name="relu")(x)
    x = convolution("second")(x) + shortcut
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = annotate(layers.Dense(2, name="classes"))(x)
    return keras.Model(pixels, layers.Softmax(name="softmax")(x), name="network")


def candidates(qmodel):
    return {point.name: point.bit_widths for point in qmodel._parts.costs.weights}


def activations(qmodel):
    return {point.name for point in qmodel._parts.costs.activations}


def assert_same_weights(left, right):
    left, right = left.get_weights(), right.get_weights()
    assert len(left) == len(right) > 0
    for a, b in zip(left, right):
        np.testing.assert_array_equal(a, b)


class TestAnnotateLayer:
    def test_runs_like_the_layer(self, images):
        layer = convolution("conv")
        annotated = quantize_annotate_layer(layer)
        assert annotated.name == "quantize_annotate_conv"
        np.testing.assert_array_equal(annotated(images), layer(images))
        assert [w.path for w in annotated.weights] == [w.path for w in layer.weights]

    def test_passes_masks_and_arguments(self):
        def recurrent(annotate):
            tokens = keras.Input((5,), dtype="int32")
            x = annotate(layers.Embedding(9, 4, mask_zero=True, name="embedding"))(tokens)
            attention = annotate(layers.MultiHeadAttention(2, 3, name="attention"))
            x = attention(x, x, use_causal_mask=True)
            return keras.Model(tokens, annotate(layers.LSTM(3, name="lstm"))(x))

        plain, annotated = recurrent(lambda layer: layer), recurrent(quantize_annotate_layer)
        annotated.set_weights(plain.get_weights())
        tokens = np.array([[3, 4, 0, 0, 0], [1, 2, 3, 4, 5]])
        np.testing.assert_allclose(annotated(tokens), plain(tokens), atol=1e-6)
        qmodel = quantize_apply(annotated, target="simulation")
        assert "attention:query/kernel" in candidates(qmodel)
        np.testing.assert_allclose(qmodel.float_model()(tokens), plain(tokens), atol=1e-6)

    def test_trains_and_freezes_with_the_layer(self, images):
        model = sequential(quantize_annotate_layer(convolution("conv")), layers.Flatten())
        model.layers[0].trainable = False
        assert not model.trainable_weights
        assert not quantize_apply(model).float_model().get_layer("conv").trainable

    @pytest.mark.parametrize("thing", ["dense", None, layers.Dense, keras.Input((3,))])
    def test_refuses_objects_that_are_not_layers(self, thing):
        with pytest.raises(ValueError, match="Expected a Keras 3 layer"):
            quantize_annotate_layer(thing)

    def test_refuses_a_second_annotation(self):
        annotated = quantize_annotate_layer(layers.Dense(2, name="dense"))
        with pytest.raises(ValueError, match="'dense' is already annotated"):
            quantize_annotate_layer(annotated)

    def test_refuses_a_model(self):
        with pytest.raises(ValueError, match="Call quantize_annotate_model"):
            quantize_annotate_layer(sequential(layers.Flatten()))

    @pytest.mark.parametrize("config", ["int8", 8, {"weight_bits": (4,)}])
    def test_refuses_an_unknown_config(self, config):
        with pytest.raises(ValueError, match="config=.* is not known"):
            quantize_annotate_layer(layers.Dense(2), config)


class TestSaving:
    def test_loads_without_scope(self, tmp_path, images):
        rule = LayerRule(pattern="", weight_bits=(4, 8), activation_bits=8)
        model = network(lambda layer: quantize_annotate_layer(layer, rule))
        model.save(tmp_path / "annotated.keras")
        loaded = keras.models.load_model(tmp_path / "annotated.keras")
        np.testing.assert_array_equal(loaded(images), model(images))
        assert candidates(quantize_apply(loaded)) == {
            "first:kernel": (4, 8),
            "classes:kernel": (4, 8),
        }

    def test_quantized_model_loads(self, tmp_path, images):
        qmodel = quantize_apply(network(quantize_annotate_layer))
        qmodel.calibrate(images)
        qmodel.save(tmp_path / "quantized.keras")
        loaded = keras.models.load_model(tmp_path / "quantized.keras")
        assert loaded._parts.wrappers.keys() == qmodel._parts.wrappers.keys()
        np.testing.assert_allclose(loaded(images), qmodel(images), atol=1e-6)


class TestAnnotateModel:
    def test_marks_layers_with_a_kernel(self, images):
        model = network()
        annotated = quantize_annotate_model(model)
        marked = [x.layer.name for x in annotated.layers if isinstance(x, QuantizeAnnotate)]
        assert marked == ["first", "second", "classes"]
        assert not any(isinstance(layer, QuantizeAnnotate) for layer in model.layers)
        assert annotated.get_layer("quantize_annotate_first").layer is not model.get_layer("first")
        assert_same_weights(annotated, model)
        assert annotated.layers[0].name == "pixels"
        np.testing.assert_allclose(annotated(images), model(images), atol=1e-6)

    def test_apply_then_quantizes_what_quantize_model_quantizes(self):
        model = network()
        applied = quantize_apply(quantize_annotate_model(model))
        direct = dqmq_tf.quantize_model(model)
        assert candidates(applied) == candidates(direct)
        assert activations(applied) == activations(direct)

    def test_keeps_annotations_with_their_configs(self):
        rule = LayerRule(pattern="", weight_bits=(4,))
        body = convolution("first"), quantize_annotate_layer(convolution("second"), rule)
        qmodel = quantize_apply(quantize_annotate_model(sequential(*body)))
        assert candidates(qmodel) == {"first:kernel": ALL, "second:kernel": (4,)}

    def test_takes_a_compiled_model_with_a_loss_of_the_users_own(self):
        model = network()
        model.compile(loss=lambda true, predicted: ops.mean(predicted))
        assert not quantize_annotate_model(model).compiled

    def test_refuses_a_model_without_kernels(self):
        with pytest.raises(ValueError, match="'small' has no layer with a kernel"):
            quantize_annotate_model(sequential(layers.Flatten()))

    def test_refuses_an_unbuilt_model(self):
        with pytest.raises(ValueError, match="no input shape yet"):
            quantize_annotate_model(keras.Sequential([layers.Dense(2)]))


class TestApply:
    def test_sequential(self, images):
        model = sequential(
            convolution("first"),
            quantize_annotate_layer(convolution("second", activation="relu")),
            layers.Flatten(),
            layers.Dense(2, name="classes"),
        )
        qmodel = quantize_apply(model)
        assert list(qmodel._parts.wrappers) == ["second"]
        assert [w.name for w in model.layers][1] == "quantize_annotate_second"
        assert_same_weights(qmodel.float_model(), model)
        np.testing.assert_allclose(qmodel.float_model()(images), model(images), atol=1e-6)

    def test_functional_quantizes_around_annotated_layers_only(self):
        marked = network(lambda x: quantize_annotate_layer(x) if x.name == "first" else x)
        qmodel = quantize_apply(marked)
        assert list(qmodel._parts.wrappers) == ["first"]
        # The sum behind the ReLU stays float because its other term is float.
        assert activations(qmodel) == {"pixels", "relu"}

    def test_layers_without_annotation_run_in_float(self, images):
        rule = LayerRule(pattern="", weight_bits=2)
        body = layers.Flatten(name="flatten"), layers.Dense(2, name="classes")
        model = sequential(quantize_annotate_layer(convolution("first"), rule), *body)
        qmodel = quantize_apply(model)
        qmodel.calibrate(images)
        assert type(qmodel.get_layer("classes")) is layers.Dense
        assert isinstance(qmodel.get_layer("first"), QuantizeWrapper)
        assert activations(qmodel) == {"pixels", "first"}
        # Two bits are visibly different from float.
        assert np.abs(ops.convert_to_numpy(qmodel(images) - model(images))).max() > 1e-2

    def test_what_an_annotated_layer_reads_is_quantized(self):
        body = convolution("float"), layers.ReLU(name="relu"), layers.Flatten(name="flatten")
        dense = quantize_annotate_layer(layers.Dense(2, name="classes"))
        qmodel = quantize_apply(sequential(*body, dense))
        assert qmodel._parts.costs.weights[0].input is not None
        assert {"relu", "classes"} <= activations(qmodel)
        assert "float" not in activations(qmodel)

    def test_inputs_of_float_layers_stay_float(self):
        body = convolution("first"), quantize_annotate_layer(convolution("second"))
        config = quantize_apply(sequential(*body)).config
        assert not config.rule_for("pixels").quantize
        body = quantize_annotate_layer(convolution("first")), convolution("second")
        assert quantize_apply(sequential(*body)).config.rule_for("pixels").quantize

    def test_nested_models(self, images):
        inner = sequential(
            quantize_annotate_layer(convolution("conv")), convolution("float"), layers.ReLU()
        )
        pixels = keras.Input((6, 6, 2), name="pixels")
        outputs = layers.Dense(2, name="classes")(layers.Flatten()(inner(pixels)))
        model = keras.Model({"image": pixels}, {"scores": outputs})
        qmodel = quantize_apply(model)
        assert list(qmodel._parts.wrappers) == ["small/conv"]
        np.testing.assert_allclose(
            qmodel.float_model()({"image": images})["scores"],
            model({"image": images})["scores"],
            atol=1e-6,
        )
        everything = quantize_apply(quantize_annotate_model(model))
        assert list(everything._parts.wrappers) == ["small/conv", "small/float", "classes"]

    def test_shared_layers(self, images):
        shared = quantize_annotate_layer(layers.Conv2D(2, 3, padding="same", name="shared"))
        pixels = keras.Input((6, 6, 2), name="pixels")
        twice = shared(layers.ReLU()(shared(pixels)))
        model = keras.Model(pixels, layers.Add()([twice, convolution("float")(pixels)[..., :2]]))
        qmodel = quantize_apply(model)
        assert list(qmodel._parts.wrappers) == ["shared"]
        assert len(qmodel.float_model().get_weights()) == 4
        np.testing.assert_allclose(qmodel.float_model()(images), model(images), atol=1e-6)

    def test_shared_layers_and_models_are_annotated_once(self, images):
        inner = sequential(layers.Conv2D(2, 3, padding="same", name="conv"))
        shared = layers.Conv2D(2, 3, padding="same", name="shared")
        pixels = keras.Input((6, 6, 2), name="pixels")
        model = keras.Model(pixels, shared(inner(shared(inner(pixels)))))
        annotated = quantize_annotate_model(model)
        assert len(annotated.get_weights()) == 4
        np.testing.assert_allclose(annotated(images), model(images), atol=1e-6)
        assert list(quantize_apply(annotated)._parts.wrappers) == ["small/conv", "shared"]

    def test_layer_called_with_and_without_its_annotation_stays_one(self):
        layer = layers.Conv2D(2, 3, padding="same", name="conv")
        pixels = keras.Input((6, 6, 2))
        model = keras.Model(pixels, quantize_annotate_layer(layer)(layer(pixels)))
        qmodel = quantize_apply(model)
        assert list(qmodel._parts.wrappers) == ["conv"]
        assert len(qmodel.float_model().get_weights()) == 2

    def test_trains(self, images):
        qmodel = quantize_apply(network(quantize_annotate_layer))
        qmodel.compile("sgd", loss="sparse_categorical_crossentropy", run_eagerly=True)
        before = qmodel.float_model().get_weights()
        history = qmodel.fit(images, np.arange(8) % 2, batch_size=8, epochs=1, verbose=0)
        assert np.isfinite(history.history["loss"][0])
        assert np.any(qmodel.float_model().get_weights()[0] != before[0])

    def test_given_model_is_unchanged(self, images):
        model = network(quantize_annotate_layer)
        names, expected = [layer.name for layer in model.layers], model(images)
        quantize_apply(model).calibrate(images)
        assert [layer.name for layer in model.layers] == names
        np.testing.assert_array_equal(model(images), expected)


class TestCandidates:
    def test_annotation_first_then_the_rules_of_the_config(self):
        rule = LayerRule(pattern="never read", weight_bits=(2, 4))
        model = sequential(
            quantize_annotate_layer(convolution("own"), rule),
            quantize_annotate_layer(convolution("ruled")),
            quantize_annotate_layer(convolution("free")),
            convolution("float"),
        )
        rule = LayerRule(pattern="own|ruled|float", weight_bits=(6,))
        qmodel = quantize_apply(model, config=DQMQConfig(rules=[rule], seed=7))
        assert candidates(qmodel) == {
            "own:kernel": (2, 4),
            "ruled:kernel": (6,),
            "free:kernel": ALL,
        }
        assert qmodel.config.seed == 7

    def test_activation_bits_reach_an_activation_that_is_split_off(self):
        rule = LayerRule(pattern="", activation_bits=(4, 8), weights=("kernel",))
        dense = layers.Dense(2, activation="softmax", name="dense")
        model = keras.Sequential(
            [
                keras.Input((4,)),
                quantize_annotate_layer(dense, rule),
                quantize_annotate_layer(layers.Dense(3, name="next")),
            ]
        )
        points = quantize_apply(model, target="simulation")._parts.costs.activations
        assert {p.name: p.bit_widths for p in points}["dense_activation"] == (4, 8)

    def test_unquantized_activation_that_is_split_off_stays_float(self):
        model = keras.Sequential(
            [
                keras.Input((4,)),
                quantize_annotate_layer(layers.Dense(3, name="dense")),
                layers.Dense(3, activation="softmax", name="float"),
            ]
        )
        assert not {"float", "float_activation"} & activations(quantize_apply(model))

    def test_rule_that_leaves_the_layer_in_float(self):
        rule = LayerRule(pattern="", quantize=False)
        model = sequential(
            quantize_annotate_layer(convolution("first")),
            layers.ReLU(name="relu"),
            quantize_annotate_layer(convolution("second"), rule),
            layers.ReLU(name="last"),
        )
        qmodel = quantize_apply(model)
        assert list(qmodel._parts.wrappers) == ["first"]
        assert not {"second", "last"} & activations(qmodel)

    def test_refuses_bits_outside_the_target(self):
        rule = LayerRule(pattern="", weight_bits=(4, 16))
        model = sequential(quantize_annotate_layer(convolution("conv"), rule))
        with pytest.raises(ValueError, match=re.escape("'conv': weight bit-widths [16]")):
            quantize_apply(model)

    def test_refuses_weights_that_the_layer_lacks(self):
        rule = LayerRule(pattern="", weights=("recurrent_kernel",))
        model = sequential(quantize_annotate_layer(convolution("conv"), rule))
        with pytest.raises(ValueError, match="'conv' has no kernel 'recurrent_kernel'"):
            quantize_apply(model)

    def test_refuses_weight_bits_without_a_kernel(self):
        rule = LayerRule(pattern="", weight_bits=(4,))
        model = sequential(quantize_annotate_layer(layers.ReLU(name="relu"), rule))
        with pytest.raises(ValueError, match="'relu' is annotated with weight bits"):
            quantize_apply(model)

    def test_refuses_a_model_without_annotation(self):
        with pytest.raises(ValueError, match="'network' has no annotated layer"):
            quantize_apply(network())

    def test_refuses_an_unbuilt_model(self):
        with pytest.raises(ValueError, match="no input shape yet"):
            quantize_apply(keras.Sequential([quantize_annotate_layer(layers.Dense(2))]))
