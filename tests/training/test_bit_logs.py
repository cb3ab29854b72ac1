"""The figures of the bits in the logs of `fit`, and metrics that would take their names."""

import keras
import pytest
from helpers.small_networks import network

import dqmq_tf


def cost(y_true, y_pred):
    return 42.0 + 0.0 * keras.ops.mean(y_pred)


@pytest.fixture(scope="module")
def qmodel():
    return dqmq_tf.quantize_model(network())


@pytest.mark.parametrize(
    "arguments",
    [
        {"metrics": [cost]},
        {"metrics": ["accuracy", keras.metrics.MeanAbsoluteError(name="entropy")]},
        {"weighted_metrics": [keras.metrics.MeanSquaredError(name="mean_bits")]},
        {"metrics": {"classes": [cost]}},
    ],
)
def test_a_metric_cannot_have_the_name_of_a_figure(qmodel, arguments):
    with pytest.raises(ValueError, match="metrics=.*name of a figure of the bits.*another name"):
        qmodel.compile("adam", "mse", **arguments)
    with pytest.raises(ValueError, match="name of a figure of the bits"):
        qmodel.compile("adam", "mse", None, *arguments.values())


def test_metrics_of_several_outputs_have_the_name_of_the_output_in_front():
    a = keras.Input((4,))
    outputs = [keras.layers.Dense(2, name=name)(a) for name in ("mean", "other")]
    qmodel = dqmq_tf.quantize_model(keras.Model(a, outputs), target="simulation")
    qmodel.compile("adam", "mse", metrics=[[cost], [cost]])
    bits = keras.metrics.MeanSquaredError(name="bits")
    with pytest.raises(ValueError, match="has 'bits', which `fit` would log as 'mean_bits'"):
        qmodel.compile("adam", "mse", metrics=[[bits], None])
