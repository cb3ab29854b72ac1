"""One training step and one test step of a `DQMQModel`."""

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from dqmq_tf import inputs
from dqmq_tf.training import fit_data, objective, optimizers
from dqmq_tf.training.several_workers import reducible


def train_step(model: Any, data: Any) -> dict[str, Any]:
    """Updates network, policy and encoder by one gradient step on the hybrid objective.

    Args:
        model: A compiled `DQMQModel`.
        data: A batch: `x`, `(x, y)` or `(x, y, sample_weight)`.

    Returns:
        The logs that Keras's own `train_step` returns.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    training, parts = model._training, model._parts
    searching = parts.policy.is_searching
    trained = [v for _, variables in optimizers.shares(model) for v in variables]
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    terms: dict[str, Any] = {}
    expected = None
    scale = model.optimizer.scale_loss(ops.ones(()))
    parts.policy.loss_scale.assign(scale / replicas)
    with tf.GradientTape() as tape:
        result = parts.instrumented(fit_data.finite(x), training=True)
        outputs = result["outputs"]
        loss = _task_loss(model, x, y, outputs, sample_weight, training=True)
        total = loss
        if searching is not False:
            losses = None
            if model.loss is not None:
                losses = objective.per_sample_losses(
                    model.loss, y, outputs, sample_weight, model._loss_weights, model.output_names
                )
            terms, expected = training.search.terms(result, losses, searching)
            total = total + sum(terms.values()) / replicas
        total = total * scale
    decisions = [result["activations"], result["weights"]]
    gradients = tape.gradient(total, trained + decisions)
    optimizers.apply(model, training.search.gated(zip(gradients, trained)), scale, searching)
    # The last field of a decision carries the gradient to the mean bit-widths.
    decision_gradients = [g for g in gradients[-2:] if searching is not False and g is not None]
    pathwise = [ops.sum(ops.abs(g[..., -1])) for g in decision_gradients]
    terms["pathwise"] = sum(pathwise, ops.zeros(())) / scale
    training.record(result, terms, expected)
    if searching is not False:
        training.search.advance(searching)
        parts.encoder.adapt(inputs.first_input(x, model), searching)
    return _logs(model, x, y, outputs, sample_weight, loss * replicas)


def test_step(model: Any, data: Any) -> dict[str, Any]:
    """Returns Keras's logs of a batch in inference mode.

    Args:
        model: A compiled `DQMQModel`.
        data: A batch, see `train_step`.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    outputs = model(fit_data.finite(x), training=False)
    loss = _task_loss(model, x, y, outputs, sample_weight, training=False)
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return _logs(model, x, y, outputs, sample_weight, loss * replicas)


def _task_loss(model: Any, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool) -> Any:
    """Returns the compiled loss of the user."""
    if y is None and any(loss is not None for loss in keras.tree.flatten(model.loss)):
        raise ValueError(
            f"{model.name!r} is compiled with a loss, which needs labels, but found none in the data. "
            "Pass arrays x and y, or a dataset with elements (x, y)."
        )
    if not model._metrics_have_variables:
        model._metrics_have_variables = True
        _create_variables_of_metrics(model, y, y_pred, sample_weight)
    return model.compute_loss(
        x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
    )


def _logs(model: Any, x: Any, y: Any, y_pred: Any, sample_weight: Any, loss: Any) -> dict[str, Any]:
    """Updates the metrics of Keras and returns their values."""
    for metric in model.metrics:
        if metric.name == "loss":
            batch = ops.shape(keras.tree.flatten(x)[0])[0]
            metric.update_state(loss, sample_weight=batch)
    return reducible(dict(model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)))


def _create_variables_of_metrics(model: Any, y: Any, y_pred: Any, sample_weight: Any) -> None:
    """Creates the variables of the compiled metrics outside of the step that is being traced.

    Keras creates them when it first updates the metrics, and those of the loss of each output when it
    first computes the loss. TensorFlow traces a function twice if it creates variables in the first
    trace, so the start of a training would take twice as long.
    """
    # Keras itself prepares the metrics in the scope of a strategy.
    if not tf.inside_function() or tf.distribute.has_strategy():
        return
    specs = keras.tree.map_structure(
        lambda value: None if value is None else tf.type_spec_from_value(value),
        (y, y_pred, sample_weight),
    )
    # Losses that layers add are tensors of the step that is being traced, and of no use elsewhere.
    several_losses = len(model.outputs) > 1 and not model.losses

    def updated(*batch: Any) -> Any:
        if several_losses:
            model.compute_loss(None, *batch)
        return model.compute_metrics(None, *batch)

    with tf.init_scope():
        update = tf.function(updated, autograph=False)
        update.get_concrete_function(*specs)
