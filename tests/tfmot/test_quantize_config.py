import importlib
import re

import keras
import numpy as np
import pytest
from helpers.new_process import in_new_process
from helpers.tfmot_configs import ListedConfig
from keras import layers

from dqmq_tf.tfmot.annotate import quantize_annotate_layer, quantize_apply
from dqmq_tf.tfmot.quantize_config import CandidatesQuantizer, DQMQQuantizeConfig, tfmot, to_rule

# dqmq_tf.tfmot.quantize_config imports TFMOT without side effects. After that, these are safe.
CORE = "tensorflow_model_optimization.python.core.quantization.keras"
configs_8bit = importlib.import_module(f"{CORE}.default_8bit.default_8bit_quantize_configs")
registry_8bit = importlib.import_module(f"{CORE}.default_8bit.default_8bit_quantize_registry")
quantizers = importlib.import_module(f"{CORE}.quantizers")
Default8Bit = registry_8bit.Default8BitQuantizeConfig


def quantizer(bits):
    return quantizers.LastValueQuantizer(bits, per_axis=True, symmetric=True, narrow_range=True)


@pytest.fixture
def dense():
    layer = layers.Dense(3, activation="relu", name="dense")
    layer.build((None, 4))
    return layer


@pytest.fixture
def separable():
    layer = layers.SeparableConv2D(3, 2, name="separable")
    layer.build((None, 5, 5, 2))
    return layer


def model_of(*annotated):
    return keras.Sequential([keras.Input((4,)), *annotated])


def candidates(qmodel):
    return {point.name: point.bit_widths for point in qmodel._parts.costs.weights}


class TestDQMQQuantizeConfig:
    def test_is_a_tfmot_config(self):
        assert isinstance(DQMQQuantizeConfig(), tfmot.quantization.keras.QuantizeConfig)

    def test_normalizes_its_arguments(self):
        config = DQMQQuantizeConfig("kernel", weight_bits=[8, 2, 4], activation_bits=8)
        assert config.weights == ("kernel",)
        assert config.weight_bits == (2, 4, 8)
        assert config.activation_bits == (8,)

    def test_refuses_no_candidates(self):
        with pytest.raises(ValueError, match="weight_bits"):
            DQMQQuantizeConfig(weight_bits=())

    def test_weights(self, separable):
        both = DQMQQuantizeConfig(weight_bits=(4, 8)).get_weights_and_quantizers(separable)
        assert [v is w for (v, _), w in zip(both, separable.weights)] == [True, True]
        assert all(made == CandidatesQuantizer((4, 8)) for _, made in both)
        one = DQMQQuantizeConfig("pointwise_kernel").get_weights_and_quantizers(separable)
        assert [v.name for v, _ in one] == ["pointwise_kernel"]

    def test_refuses_weights_that_the_layer_lacks(self, dense):
        with pytest.raises(
            ValueError,
            match=re.escape("'dense' has no kernel 'bias' to quantize. It has ['kernel']"),
        ):
            DQMQQuantizeConfig("bias").get_weights_and_quantizers(dense)

    def test_activation_or_output(self, dense):
        config = DQMQQuantizeConfig(activation_bits=(4, 8))
        expected = CandidatesQuantizer((4, 8))
        assert config.get_activations_and_quantizers(dense) == [(keras.activations.relu, expected)]
        assert config.get_output_quantizers(dense) == []
        assert config.get_activations_and_quantizers(layers.Add()) == []
        assert config.get_output_quantizers(layers.Add()) == [expected]

    def test_sets_weights(self, dense):
        config = DQMQQuantizeConfig()
        config.set_quantize_weights(dense, [np.full((4, 3), 0.5, "float32")])
        assert np.all(dense.kernel == 0.5)
        with pytest.raises(ValueError, match=r"shapes \[\(4, 3\)\] to set, found \[\(3, 4\)\]"):
            config.set_quantize_weights(dense, [np.zeros((3, 4))])

    def test_sets_activations(self, dense):
        config = DQMQQuantizeConfig()
        config.set_quantize_activations(dense, [keras.activations.relu6])
        assert dense.activation is keras.activations.relu6
        with pytest.raises(ValueError, match="has 1 activation"):
            config.set_quantize_activations(dense, [])

    def test_rule(self):
        rule = DQMQQuantizeConfig(("kernel",), (4, 8), (8,)).to_rule("a.b/dense")
        assert re.fullmatch(rule.pattern, "a.b/dense")
        assert not re.fullmatch(rule.pattern, "aXb/dense")
        assert (rule.weights, rule.weight_bits) == (("kernel",), (4, 8))
        assert rule.activation_bits == (8,)

    def test_round_trip_and_equality(self):
        config = DQMQQuantizeConfig(("kernel",), (4, 8))
        loaded = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(config))
        assert loaded == config
        assert hash(loaded) == hash(config)
        assert DQMQQuantizeConfig.from_config(config.get_config()) == config
        assert config != DQMQQuantizeConfig(("kernel",), (4,))

    def test_candidates_are_those_of_the_quantized_model(self, tmp_path):
        config = DQMQQuantizeConfig(weight_bits=(2, 4, 8), activation_bits=(4, 8))
        model = model_of(
            quantize_annotate_layer(layers.Dense(3, name="own"), config),
            quantize_annotate_layer(layers.Dense(3, name="last"), DQMQQuantizeConfig("kernel", 4)),
            layers.Dense(2, name="float"),
        )
        model.save(tmp_path / "annotated.keras")
        for annotated in (model, keras.models.load_model(tmp_path / "annotated.keras")):
            qmodel = quantize_apply(annotated, target="simulation")
            assert candidates(qmodel) == {"own:kernel": (2, 4, 8), "last:kernel": (4,)}
            widths = {point.name: point.bit_widths for point in qmodel._parts.costs.activations}
            assert widths["own"] == (4, 8)

    def test_apply_refuses_unknown_weights_and_bits(self):
        model = model_of(
            quantize_annotate_layer(layers.Dense(3, name="d"), DQMQQuantizeConfig("w"))
        )
        with pytest.raises(ValueError, match="'d' has no kernel 'w'"):
            quantize_apply(model)
        config = DQMQQuantizeConfig(activation_bits=(4,))
        model = model_of(quantize_annotate_layer(layers.Dense(3, name="d"), config))
        with pytest.raises(ValueError, match=re.escape("activation bit-widths [4]")):
            quantize_apply(model, target="android")


class TestCandidatesQuantizer:
    def test_quantizes_at_the_widest(self):
        made = CandidatesQuantizer((2, 3))
        x = np.array([[-1.0, 0.4], [0.1, 0.9]], "float32")
        variables = made.build(x.shape, "kernel", None)
        expected = [[-1.0, 1 / 3], [0.0, 1.0]]
        np.testing.assert_allclose(made(x, False, variables), expected, atol=1e-6)

    def test_round_trip(self):
        made = CandidatesQuantizer((2, 3))
        assert CandidatesQuantizer.from_config(made.get_config()) == made
        assert made != CandidatesQuantizer()


class TestAnyTfmotConfig:
    def test_default_8bit(self, dense):
        rule = to_rule(Default8Bit(["kernel"], ["activation"], False), dense, "dense")
        assert rule.quantize
        assert (rule.weights, rule.user_quantizers.weight_bits) == (("kernel",), {"kernel": (8,)})
        assert rule.activation_bits == (8,)
        ((name, activation),) = rule.user_quantizers.outputs
        assert (name, type(activation)) == ("post_activation", quantizers.MovingAverageQuantizer)

    def test_default_8bit_end_to_end(self, tmp_path):
        config = Default8Bit(["kernel"], ["activation"], False)
        model = model_of(
            layers.Dense(3, name="float"),
            quantize_annotate_layer(layers.Dense(2, name="dense"), config),
        )
        model.save(tmp_path / "annotated.keras")
        for annotated in (model, keras.models.load_model(tmp_path / "annotated.keras")):
            qmodel = quantize_apply(annotated)
            assert candidates(qmodel) == {"dense:kernel": (8,)}

    def test_default_8bit_of_recurrent_layers(self):
        layer = layers.LSTM(3, name="lstm")
        layer.build((None, 5, 2))
        config = registry_8bit.Default8BitQuantizeConfigRNN(
            [["kernel", "recurrent_kernel"]], [["activation"]], False
        )
        rule = to_rule(config, layer, "lstm")
        assert len(rule.weights) == 2
        assert rule.user_quantizers.weight_bits == dict.fromkeys(rule.weights, (8,))
        assert [name for name, _ in rule.user_quantizers.outputs] == ["post_activation"]

    def test_output_only(self):
        rule = to_rule(configs_8bit.Default8BitOutputQuantizeConfig(), layers.Add(), "add")
        assert (rule.quantize, rule.weights, rule.activation_bits) == (True, None, (8,))

    def test_a_config_without_quantizers_leaves_the_layer_in_float(self, dense):
        assert not to_rule(configs_8bit.NoOpQuantizeConfig(), dense, "dense").quantize
        idle = ListedConfig({"kernel": quantizers.NoQuantizer()})
        assert not to_rule(idle, dense, "dense").quantize

    def test_some_kernels_only(self, separable):
        config = ListedConfig(
            {"pointwise_kernel": quantizer(4)}, outputs=[CandidatesQuantizer((4, 8))]
        )
        rule = to_rule(config, separable, "separable")
        assert (rule.weights, rule.weight_bits) == (("pointwise_kernel",), None)
        assert rule.user_quantizers.weight_bits == {"pointwise_kernel": (4,)}
        # Candidates are learned, so nothing of the user's own runs on the output.
        assert (rule.activation_bits, rule.user_quantizers.outputs) == ((4, 8), ())
        assert not rule.user_quantizers.has_float_output

    @pytest.mark.parametrize(
        "config, message",
        [
            (
                ListedConfig({"kernel": CandidatesQuantizer(8)}),
                "leaves the output in floating point",
            ),
            (
                ListedConfig({}, outputs=[CandidatesQuantizer(8)]),
                "quantizes the output and none of the kernels",
            ),
            (
                ListedConfig({"bias": quantizer(8)}, outputs=[quantizer(8)]),
                "'bias', which is not a kernel",
            ),
            (
                ListedConfig({"gamma": quantizer(8)}, outputs=[quantizer(8)]),
                "does not fit the layer: .*'gamma'",
            ),
            (
                ListedConfig({"kernel": quantizer(8)}, outputs=[quantizer(4), quantizer(8)]),
                r"different bit-widths, \[\(4,\), \(8,\)\]",
            ),
            (
                ListedConfig({"kernel": object()}, outputs=[quantizer(8)]),
                "has a object for a quantizer",
            ),
            ("int8", "found a config of type str"),
        ],
    )
    def test_refuses_configs_that_a_rule_cannot_express(self, dense, config, message):
        with pytest.raises(ValueError, match=f"Layer 'dense': .*{message}"):
            to_rule(config, dense, "dense")

    def test_refuses_candidates_of_different_widths(self, separable):
        weights = {
            "depthwise_kernel": CandidatesQuantizer(8),
            "pointwise_kernel": CandidatesQuantizer(4),
        }
        with pytest.raises(ValueError, match="the weights have quantizers of different bit-widths"):
            to_rule(ListedConfig(weights, outputs=[quantizer(8)]), separable, "separable")

    def test_refuses_a_quantizer_before_an_activation_without_a_kernel(self):
        class Before(ListedConfig):
            """The message names the class."""

        layer = layers.Activation("softmax", name="softmax")
        with pytest.raises(ValueError, match="'softmax': Before quantizes before the activation"):
            to_rule(Before(activation=quantizer(8)), layer, "softmax")


class TestImport:
    """Runs in processes of their own, because the side effects of importing TFMOT are permanent."""

    def run(self, *lines):
        # TFMOT asks for the old Keras by this variable, which other tests may have set.
        first = "import os; os.environ.pop('TF_USE_LEGACY_KERAS', None)"
        return in_new_process("\n".join((first, *lines)))

    def test_leaves_an_untouched_tf_keras_alone(self):
        # The lines after the import stand for user code, which reads tf.keras only now.
        self.run(
            "import dqmq_tf, keras, tensorflow as tf, sys",
            "assert 'tensorflow_model_optimization' not in sys.modules",
            "before, lazy = dict(os.environ), vars(tf)['keras']",
            "import dqmq_tf.tfmot.quantize_config as module",
            "assert dict(os.environ) == before",
            "assert vars(tf)['keras'] is lazy",
            "for space in (tf, tf.compat.v1, tf.compat.v2):",
            "    assert space.keras.__version__ == keras.__version__, space",
            "assert tf.keras.layers.Dense is keras.layers.Dense",
            "assert tf.losses.Loss is keras.losses.Loss",
            "import tf_keras",
            "assert issubclass(module.tfmot.quantization.keras.QuantizeWrapper, tf_keras.layers.Layer)",
            "import numpy as np",
            "model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])",
            "model.compile('sgd', 'mse')",
            "model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)",
        )

    def test_leaves_a_used_tf_keras_and_a_set_variable_alone(self):
        self.run(
            "import tensorflow as tf",
            "used = tf.keras.layers.Dense, tf.keras.__version__, vars(tf)['keras']",
            "os.environ['TF_USE_LEGACY_KERAS'] = '0'",
            "before = dict(os.environ)",
            "import dqmq_tf.tfmot.quantize_config",
            "assert dict(os.environ) == before",
            "assert (tf.keras.layers.Dense, tf.keras.__version__, vars(tf)['keras']) == used",
        )

    def test_tfmot_is_optional(self):
        output = self.run(
            "import sys, tensorflow as tf",
            "sys.modules['tensorflow_model_optimization'] = None",
            "import dqmq_tf, keras",
            "from dqmq_tf.tfmot import annotate",
            "layer = annotate.quantize_annotate_layer(keras.layers.Dense(2))",
            "annotate.quantize_apply(keras.Sequential([keras.Input((3,)), layer]))",
            "lazy = vars(tf)['keras']",
            "try:",
            "    import dqmq_tf.tfmot.quantize_config",
            "except ImportError as error:",
            "    print(error)",
            "assert 'TF_USE_LEGACY_KERAS' not in os.environ and vars(tf)['keras'] is lazy",
        )
        assert 'pip install ".[tfmot]" in the checkout' in output
