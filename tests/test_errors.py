"""One `except dqmq_tf.DQMQError` catches what the package raises about models and files."""

import pytest

import dqmq_tf
from dqmq_tf import errors, export


@pytest.mark.parametrize(
    "error", ["ConversionError", "FileFormatError", "UnsupportedLayerError", "VerificationError"]
)
def test_errors_about_models_and_files_have_one_base(error):
    kind = getattr(dqmq_tf, error)
    assert issubclass(kind, dqmq_tf.DQMQError)
    assert kind is getattr(errors, error) is getattr(export, error)


def test_code_that_caught_the_errors_of_earlier_versions_still_catches_them():
    unsupported = errors.UnsupportedLayerError("block/conv", "dilation_rate=2", "Use 1.")
    assert isinstance(unsupported, ValueError) and isinstance(unsupported, errors.ConversionError)
    assert "'block/conv' (dilation_rate=2)" in str(unsupported)
    assert issubclass(errors.ConversionError, RuntimeError)
    assert issubclass(errors.VerificationError, RuntimeError)
    # Reading a corrupt file raised a ConversionError.
    assert issubclass(errors.FileFormatError, errors.ConversionError)
