"""Distillation: the float model's prediction for an image becomes part of its label.

A label says which class is correct. The float model's probabilities also say how similar the other
classes are, and they express doubt about an image that is too degraded to recognize. A network of
few bits cannot learn that from labels alone in a short fine-tuning (Hinton et al. 2015, "Distilling
the Knowledge in a Neural Network", arXiv 1503.02531; for networks of few bits, Mishra and Marr 2018,
"Apprentice", arXiv 1711.05852).
"""

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from dqmq_tf.graph.activations import last_activation
from dqmq_tf.graph.rebuild import copy_model


def distill_labels(
    dataset: tf.data.Dataset, model: keras.Model, share: float = 0.5
) -> tf.data.Dataset:
    """Mixes the predictions of a float classifier into the labels of a dataset.

    Train the quantized model on the result with a loss that accepts probabilities as labels, such as
    `"categorical_crossentropy"`. The float model runs during training, on the same images as the
    quantized one, degraded or not. It is copied first, so training or changing it later does not
    change the labels.

    Args:
        dataset: A `tf.data.Dataset` of batches `(images, labels)` or `(images, labels, sample
            weights)`. Labels are classes `[batch]` or one-hot `[batch, classes]`.
        model: The Keras model that is quantized, or any other functional model with one output
            `[batch, classes]`. The output is probabilities, or logits, to which a softmax is
            applied.
        share: The share of the prediction in the new label, 0 to 1. The rest is the old label.

    Returns:
        A `tf.data.Dataset` like `dataset`, with float32 labels `[batch, classes]`.

    Raises:
        ValueError: If the model is quantized or subclassed, if it has several outputs or an output
            of another shape, if `dataset` is not a dataset of labeled batches that fit the model, or
            if `share` is out of range.

    Example:

    >>> qmodel = dqmq_tf.quantize_model(model)
    >>> qmodel.compile("adam", "categorical_crossentropy")
    >>> qmodel.fit(dqmq_tf.distill_labels(mixed_quality_dataset, model), epochs=3)
    """
    if not 0 <= share <= 1:
        raise ValueError(
            f"share={share!r} is not a share of the label. Pass a number from 0 (the old label) to 1 "
            "(the prediction)."
        )
    if not isinstance(dataset, tf.data.Dataset):
        raise ValueError(
            f"distill_labels takes a tf.data.Dataset of batches. Found {type(dataset).__name__}. Arrays "
            "become one by tf.data.Dataset.from_tensor_slices((images, labels)).batch(32)."
        )
    if hasattr(model, "float_model"):
        raise ValueError(
            f"distill_labels takes the predictions of a float model, but {model.name!r} is quantized. "
            "Pass the model that was quantized, or what qmodel.float_model() returned before training."
        )
    teacher = copy_model(model)
    classes = _class_count(teacher)
    sparse = _has_sparse_labels(dataset, teacher, classes)
    gives_probabilities = last_activation(model.outputs[0]) in ("softmax", "sigmoid")

    def mix_labels(x: Any, y: Any, *weights: Any) -> tuple[Any, ...]:
        predicted = ops.cast(teacher(x, training=False), "float32")
        if not gives_probabilities:
            predicted = ops.softmax(predicted)
        if sparse:
            y = ops.one_hot(ops.reshape(ops.cast(y, "int32"), (-1,)), classes)
        return x, (1.0 - share) * ops.cast(y, "float32") + share * predicted, *weights

    return dataset.map(mix_labels).prefetch(tf.data.AUTOTUNE)


def _class_count(model: keras.Model) -> int:
    """Returns the number of classes of a classifier; raises `ValueError` if it is none."""
    shapes = [tuple(output.shape) for output in model.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2 or not shapes[0][1]:
        raise ValueError(
            f"The model {model.name!r} has outputs of shapes {shapes}. Pass a classifier with one "
            "output [batch, classes]."
        )
    return shapes[0][1]


def _has_sparse_labels(dataset: tf.data.Dataset, model: keras.Model, classes: int) -> bool:
    """Returns whether labels are class indices, not one-hot; raises if they do not fit the model."""
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise ValueError(
            f"The dataset has elements {spec}. Pass a dataset of batches (images, labels) or "
            "(images, labels, sample weights)."
        )
    images, labels = keras.tree.flatten(spec[0])[0], spec[1]
    expected = model.inputs[0].shape
    if images.shape.rank != len(expected):
        raise ValueError(
            f"The dataset has images of shape {images.shape}, but the model {model.name!r} takes "
            f"{tuple(expected)}. Batch the dataset first, with dataset.batch(batch_size)."
        )
    if labels.shape.rank == 2 and labels.shape[1] == classes:
        return False
    if labels.shape.rank == 1 or labels.shape.rank == 2 and labels.shape[1] == 1:
        return True
    raise ValueError(
        f"The dataset has labels of shape {labels.shape}, but the model {model.name!r} has {classes} "
        f"classes. Pass class indices [batch] or one-hot labels [batch, {classes}]."
    )
