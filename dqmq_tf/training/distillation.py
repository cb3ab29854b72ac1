"""Distillation: what the float model makes of an image is a part of its label.

A label says which class is right; the float model's probabilities also say how near the others are,
and on an image too bad to be told they do not insist. A network of few bits has not the capacity to
learn that from labels in a short fine-tuning (Hinton et al. 2015, "Distilling the Knowledge in a
Neural Network", arXiv 1503.02531; for networks of few bits, Mishra and Marr 2018, "Apprentice",
arXiv 1711.05852).
"""

import keras
import tensorflow as tf
from keras import ops

from dqmq_tf.graph.activations import last_activation
from dqmq_tf.graph.rebuild import copy_model


def distill_labels(dataset, model, share=0.5):
    """Mixes the predictions of a float classifier into the labels of a dataset.

    Train the quantized model on it with a loss that takes probabilities as labels, such as
    `"categorical_crossentropy"`. The float model runs beside the training, on the images as they are
    seen, degraded or not; it is copied, and what becomes of it later changes no label.

    Args:
        dataset: A `tf.data.Dataset` of batches `(images, labels)` or `(images, labels, sample
            weights)`; labels are classes `[batch]` or one-hot `[batch, classes]`.
        model: The Keras model that is quantized, or any other functional one with one output
            `[batch, classes]`: probabilities, or logits, of which the softmax is taken.
        share: Of the prediction in the new label, 0 to 1; the rest is the old label.

    Returns:
        A `tf.data.Dataset` like the one given, with labels float32 `[batch, classes]`.

    Raises:
        ValueError: If the model has several outputs or another shape, the dataset is not one of
            labelled batches that go with it, or the share is out of range.

    Example:

    >>> qmodel = dqmq_tf.quantize_model(model)
    >>> qmodel.compile("adam", "categorical_crossentropy")
    >>> qmodel.fit(dqmq_tf.distill_labels(mixed_quality_dataset, model), epochs=3)
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share!r}: give the share of the prediction in a label, 0 to 1.")
    classes = _classes(model)
    sparse = _has_sparse_labels(dataset, model, classes)
    teacher = copy_model(model)
    gives_probabilities = last_activation(model.outputs[0]) in ("softmax", "sigmoid")

    def mixed(x, y, *weights):
        predicted = ops.cast(teacher(x, training=False), "float32")
        if not gives_probabilities:
            predicted = ops.softmax(predicted)
        if sparse:
            y = ops.one_hot(ops.reshape(ops.cast(y, "int32"), (-1,)), classes)
        return x, (1.0 - share) * ops.cast(y, "float32") + share * predicted, *weights

    return dataset.map(mixed).prefetch(tf.data.AUTOTUNE)


def _classes(model):
    shapes = [tuple(output.shape) for output in model.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2 or not shapes[0][1]:
        raise ValueError(
            f"The model {model.name!r} has outputs {shapes}: labels can be distilled from a "
            "classifier with one output [batch, classes]."
        )
    return shapes[0][1]


def _has_sparse_labels(dataset, model, classes):
    """Whether labels are classes, not one row each; raises if they do not go with the model."""
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise ValueError(
            f"The dataset has elements {spec}: give one of (images, labels), or with sample weights."
        )
    images, labels = keras.tree.flatten(spec[0])[0], spec[1]
    expected = model.inputs[0].shape
    if images.shape.rank != len(expected):
        raise ValueError(
            f"The dataset has images {images.shape}, but the model {model.name!r} takes "
            f"{tuple(expected)}: batch the dataset first."
        )
    if labels.shape.rank == 2 and labels.shape[1] == classes:
        return False
    if labels.shape.rank == 1 or labels.shape.rank == 2 and labels.shape[1] == 1:
        return True
    raise ValueError(
        f"The dataset has labels {labels.shape}, but the model {model.name!r} tells {classes} "
        f"classes apart: give classes [batch] or one-hot labels [batch, {classes}]."
    )
