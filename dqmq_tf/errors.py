"""The errors of this package about models and files. All of them are `DQMQError`s."""

import numbers
from typing import Any


class DQMQError(Exception):
    """Base of the errors that this package raises about models and files."""


class ConversionError(DQMQError, RuntimeError):
    """A model cannot be converted as it is. The message says what to change."""


class UnsupportedLayerError(ConversionError, ValueError):
    """A layer cannot be expressed in a `.tflite` file.

    Args:
        path: Path of the layer in the graph, such as `"block_1/conv"`.
        found: What was found there, such as `"LSTM: stateful=True"`.
        advice: What the user can do about it.
    """

    def __init__(self, path: str, found: str, advice: str) -> None:
        super().__init__(f"Layer {path!r} ({found}) cannot be converted. {advice}")
        self.path = path
        self.found = found


class FileFormatError(ConversionError):
    """A `.tflite` file cannot be read, or is not of the kind that was expected.

    It is a `ConversionError`, which earlier versions raised in its place.
    """


class VerificationError(DQMQError, RuntimeError):
    """A file does not compute what its model computes, or a runtime cannot run it."""


class FloatOnly(Exception):
    """A layer has no integer kernel, for the reason in the message. Never leaves the package."""


def check_quantized(qmodel: Any) -> None:
    """Raises `ValueError` if an argument `qmodel` is no `DQMQModel`."""
    if not hasattr(qmodel, "frozen_profiles"):
        raise ValueError(
            f"`qmodel` must be a DQMQModel. Found {type(qmodel).__name__}. Create one with "
            "`dqmq_tf.quantize_model(model)`, or load one with `keras.models.load_model(path)`."
        )


def check_profile(profile: Any, count: int) -> None:
    """Raises `ValueError` if an argument `profile` is no index of one of `count` precision profiles."""
    if not isinstance(profile, numbers.Integral) or profile not in range(count):
        raise ValueError(
            f"profile={profile!r} does not exist: the number of precision profiles is {count}. Pass an "
            f"index from 0 to {count - 1}, or freeze the model to more profiles."
        )
