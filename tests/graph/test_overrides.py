"""`dqmq_tf.graph.overrides`: methods of a model's class that its copy does not have."""

import warnings

import keras
import pytest
from helpers.small_networks import network

import dqmq_tf
from dqmq_tf.graph.overrides import overridden


class OwnLoss(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 1000.0 * keras.ops.mean(y_pred**2)


class OwnStep(keras.Sequential):
    def train_step(self, data):
        return {}

    def test_step(self, data):
        return {}


class Scaled(keras.Model):
    def call(self, x):
        return 2.0 * super().call(x)


def of_class(kind, model):
    if issubclass(kind, keras.Sequential):
        return kind([keras.Input(model.input.shape[1:]), *model.layers[1:]])
    return kind(model.input, model.output)


@pytest.mark.parametrize(
    ("kind", "methods"), [(OwnLoss, "compute_loss"), (OwnStep, "train_step, test_step")]
)
@pytest.mark.parametrize("name", ["quantize_model", "quantize_annotate_model"])
def test_a_method_for_training_that_a_class_overrides_is_named_in_a_warning(kind, methods, name):
    model = of_class(kind, network())
    expected = f"{kind.__name__}, which overrides {methods}. .*compile.*custom_training"
    with pytest.warns(UserWarning, match=expected) as caught:
        getattr(dqmq_tf, name)(model)
    assert [w.filename for w in caught if w.category is UserWarning] == [__file__]


def test_quantize_apply_warns_of_them_too():
    annotated = dqmq_tf.quantize_annotate_model(network())
    with pytest.warns(UserWarning, match="overrides compute_loss"):
        dqmq_tf.quantize_apply(of_class(OwnLoss, annotated))


@pytest.mark.parametrize("is_nested", [False, True])
def test_a_model_whose_class_overrides_call_is_refused(is_nested):
    model = of_class(Scaled, network())
    if is_nested:
        image = keras.Input(model.input.shape[1:])
        model = keras.Model(image, model(image))
    with pytest.raises(ValueError, match="of class Scaled, which overrides `call`"):
        dqmq_tf.quantize_model(model)


def test_classes_of_keras_and_of_this_package_cause_no_warning():
    models = [network(), keras.applications.MobileNetV2((32, 32, 3), 0.35, weights=None)]
    methods = ("call", "train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")
    assert not any(overridden(model, methods) for model in models)
    qmodel = dqmq_tf.quantize_model(models[0])
    assert not overridden(qmodel, methods)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        dqmq_tf.quantize_model(qmodel.float_model())
