"""A conversion hands its file on as objects, and does not parse the same bytes again and again."""

import pytest
from helpers.frozen_models import images

from dqmq_tf import export
from dqmq_tf.flatbuffer import validation


@pytest.fixture
def parses(monkeypatch):
    """A list that grows by one entry with every parse: each parse validates what it read."""
    validate, counted = validation.validate, []

    def counting(*args):
        counted.append(args)
        return validate(*args)

    monkeypatch.setattr(validation, "validate", counting)
    return counted


@pytest.mark.parametrize("every_bit_width", ["android", "microcontroller"], indirect=True)
def test_a_conversion_parses_the_float_file_and_the_quantized_file_only(
    every_bit_width, parses, tmp_path
):
    qmodel, _, _ = every_bit_width
    parses.clear()  # Measuring files while the model is frozen is not part of the conversion.
    report = export.convert(qmodel, tmp_path / "model.tflite", data=images(qmodel), verify=True)
    assert report.verification.different_numbers == 0
    assert len(parses) <= 2
