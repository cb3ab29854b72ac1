"""Methods that the class of a model overrides. A copy of the model's graph does not have them."""

import warnings
from collections.abc import Iterable

import keras

_TRAINING = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")


def overridden(model: keras.Model, methods: Iterable[str]) -> list[str]:
    """Returns those of the methods that a class of neither Keras nor this package defines.

    Args:
        model: The model.
        methods: The names of methods.
    """
    owners = {
        name: kind
        for name in methods
        for kind in reversed(type(model).__mro__)
        if name in vars(kind)
    }
    own = ("keras", "dqmq_tf")
    return [name for name, kind in owners.items() if kind.__module__.partition(".")[0] not in own]


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
