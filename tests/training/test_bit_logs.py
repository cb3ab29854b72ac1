"""The figures of the bits in the logs of `fit`, and metrics that would take their names."""

import keras
import numpy as np
import pytest
from helpers.small_networks import compiled, images, network

import dqmq_tf
from dqmq_tf.training.bit_history import mean_bits


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


def test_the_mean_bits_of_an_epoch_that_ends_settled_are_those_of_the_settled_bits():
    model = network()
    qmodel = compiled(dqmq_tf.quantize_model(model, budget=dqmq_tf.Budget(download_bytes=7_000)))
    x, y = images(128), np.arange(128) % 10
    # The bits settle within the epoch: its first steps are taken with others.
    history = qmodel.fit(x, y, batch_size=8, epochs=1, verbose=0)
    assert dqmq_tf.summary(qmodel).phase == "settled"
    bits = mean_bits(qmodel)
    sizes = {
        f"{layer.name}:kernel": np.prod(layer.kernel.shape)
        for layer in model.layers
        if hasattr(layer, "kernel")
    }
    mean = sum(bits[point] * size for point, size in sizes.items()) / sum(sizes.values())
    assert history.history["mean_bits"] == [pytest.approx(mean, abs=1e-4)]


def test_the_cost_is_that_of_weights_that_are_loaded(tmp_path):
    qmodel = compiled(
        dqmq_tf.quantize_model(network(), budget=dqmq_tf.Budget(download_bytes=7_000))
    )
    qmodel.fit(images(64), np.arange(64) % 10, epochs=2, verbose=0)
    before = qmodel._training.figures()["cost"]
    path = tmp_path / "model.weights.h5"
    qmodel.save_weights(path)
    for wrapper in qmodel._parts.wrappers.values():
        wrapper.layer.kernel.assign(0 * wrapper.layer.kernel)
    qmodel._training.keep_budget()
    assert qmodel._training.figures()["cost"] < 0.9 * before
    zeros = qmodel.get_weights()
    qmodel.load_weights(path)
    assert qmodel._training.figures()["cost"] == before
    qmodel.set_weights(zeros)
    assert qmodel._training.figures()["cost"] < 0.9 * before
