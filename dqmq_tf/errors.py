"""Errors raised while a model is written to, or checked against, a file."""


class ConversionError(RuntimeError):
    """A model cannot be written as it stands; the message says what to change."""


class UnsupportedLayerError(ValueError):
    """A layer has no counterpart in a file that computes the same.

    Args:
        path: Name of the layer in the graph, such as `"block_1/conv"`.
        found: What was found there, such as `"LSTM: stateful=True"`.
        advice: What the user can do about it.
    """

    def __init__(self, path, found, advice):
        super().__init__(f"Layer {path!r} ({found}) cannot be converted. {advice}")
        self.path = path
        self.found = found


class VerificationError(RuntimeError):
    """A file does not compute what the model computes, or cannot be read."""


class FloatOnly(Exception):
    """A layer has no integer kernel, for the reason that the message gives; never leaves export."""
