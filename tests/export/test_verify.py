import json

import numpy as np
import pytest
import tensorflow as tf

from dqmq_tf import export
from dqmq_tf.export import checksum, flatbuffer
from dqmq_tf.export.errors import VerificationError

from .conftest import freeze, images, small_model


def test_report(small, small_file):
    report = export.verify(small, small_file[0], images(small, 50))
    assert report.samples == 50 and report.classification
    assert report.top1_agreement >= 0.96
    assert report.mean_quanta < 0.5
    assert report.different_numbers == 0 < report.checked_numbers
    assert json.loads(report.to_json())["samples"] == 50


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_datasets(small, small_file, labels, batched):
    x = images(small, 20)
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros(20)) if labels else x)
    data = data.batch(8) if batched else data
    report = export.verify(small, small_file[0], data)
    assert report.samples == 20
    assert report == export.verify(small, small_file[0], x)


def test_endless_dataset_ends(small, small_file):
    data = tf.data.Dataset.from_tensor_slices(images(small, 20)).repeat().batch(8)
    assert export.verify(small, small_file[0], data, samples=30).samples == 30


def test_no_data(small, small_file):
    with pytest.raises(ValueError, match="data holds no inputs"):
        export.verify(small, small_file[0], images(small, 4)[:0])


def test_missing_file(small, tmp_path):
    with pytest.raises(FileNotFoundError):
        export.verify(small, tmp_path / "nothing.tflite", images(small, 4))


def test_other_model(small_file):
    other = freeze(small_model(), {"conv": 3})
    with pytest.raises(VerificationError, match="numbers of this model.*conv"):
        export.verify(other, small_file[0], images(other, 4))


def test_other_shape_of_data(small, small_file):
    with pytest.raises(VerificationError, match="takes inputs of shape"):
        export.verify(small, small_file[0], np.zeros((2, 9, 9, 3), "float32"))


@pytest.mark.parametrize("keep", [0, 6, 100, 2000])
def test_truncated_file(small, small_file, tmp_path, keep):
    path = tmp_path / "model.tflite"
    path.write_bytes(small_file[0].read_bytes()[:keep])
    with pytest.raises(VerificationError, match="truncated"):
        export.verify(small, path, images(small, 4))


def test_departure_names_figures_and_tensor(small, small_file, tmp_path):
    # Another stride keeps all numbers and shapes but one computation.
    model = flatbuffer.read(small_file[0].read_bytes())
    for operator in model.subgraphs[0].operators:
        if flatbuffer.operator_name(model, operator) == "CONV_2D":
            operator.builtinOptions.fusedActivationFunction = 0
        if flatbuffer.operator_name(model, operator) == "SOFTMAX":
            operator.builtinOptions.beta = 9.0
    path = tmp_path / "model.tflite"
    path.write_bytes(checksum.seal(flatbuffer.write(model)))
    with pytest.raises(VerificationError, match="mean difference .* quanta.*made by"):
        export.verify(small, path, images(small))
