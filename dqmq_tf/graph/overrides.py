"""Methods that the class of a model or layer overrides, which its graph does not show."""

import warnings
from collections.abc import Iterable

import keras

_PACKAGES = ("keras", "tf_keras", "dqmq_tf", "tensorflow_model_optimization")
_TRAINING = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")


def overridden(layer: keras.layers.Layer, methods: Iterable[str]) -> list[str]:
    """Returns those of the methods that a class of the user's own defines.

    Args:
        layer: A layer or model.
        methods: The names of methods.
    """
    owners = {
        name: kind
        for name in methods
        for kind in reversed(type(layer).__mro__)
        if name in vars(kind)
    }
    return [
        name for name, kind in owners.items() if kind.__module__.partition(".")[0] not in _PACKAGES
    ]


def warn_of_training_methods(model: keras.Model) -> None:
    """Warns, at the caller of the caller, if the class of a model says how to train it."""
    methods = overridden(model, _TRAINING)
    if methods:
        warnings.warn(
            f"Model {model.name!r} is of class {type(model).__name__}, which overrides "
            f"{', '.join(methods)}. The quantized model has the layers and weights of the model, and "
            "trains with the methods of Keras. Put losses and metrics into compile. For a training "
            "step of your own, write the loop inside `with qmodel.custom_training(...)`.",
            stacklevel=3,
        )
