import numpy as np
import pytest

from dqmq_tf import flatbuffer
from dqmq_tf.export import output_agreement


def test_figures():
    expected = [np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], np.float32)]
    found = [np.array([[0.8, 0.2], [0.4, 0.6], [0.2, 0.8]], np.float32)]
    figures = output_agreement.compare(found, expected, steps=[0.01])
    assert figures.samples == 3
    assert figures.top1_agreement == pytest.approx(2 / 3)
    # The second input leads by 20 steps only.
    assert figures.clear == 2 and figures.clear_agreement == 1.0
    assert figures.largest_quanta == pytest.approx(20, rel=1e-5)
    assert figures.mean_quanta == pytest.approx(10, rel=1e-5)


def test_all_outputs_must_agree():
    right = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    half = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    assert (
        output_agreement.compare([right, half], [right, right], [0.01, 0.01]).top1_agreement == 0.5
    )


def test_without_classes_only_differences_count():
    expected = [np.zeros((2, 1), np.float32), np.zeros((2, 3, 4), np.float32)]
    assert not output_agreement.is_classification(expected)
    found = [array + 1 for array in expected]
    figures = output_agreement.compare(found, expected, steps=[1.0, 0.5])
    assert figures.top1_agreement == 1.0 and figures.largest_quanta == 2.0


def test_a_large_output_does_not_hide_a_small_one_that_differs():
    expected = [np.zeros((2, 100), np.float32), np.zeros((2, 1), np.float32)]
    figures = output_agreement.compare([expected[0], expected[1] + 9], expected, [1.0, 1.0])
    assert figures.mean_quanta == 9.0 and figures.largest_quanta == 9.0


@pytest.mark.parametrize("count, expected", [(0, 1), (10, 1), (1000, 19)])
def test_few_inputs_make_no_case(count, expected):
    assert output_agreement.allowed(0.99, count) == expected


def test_steps_are_those_of_the_file(small_file, small):
    model = flatbuffer.read(small_file[0].read_bytes())
    assert output_agreement.output_steps(model, [np.zeros((1, 4))]) == [1 / 256]
    for tensor in model.subgraphs[0].tensors:
        tensor.quantization = None
    steps = output_agreement.output_steps(model, [np.array([[0.0, 0.51]])])
    assert steps == [pytest.approx(0.51 / 255)]


def test_a_step_of_an_output_that_does_not_vary_follows_from_its_size(small_file):
    model = flatbuffer.read(small_file[0].read_bytes())
    for tensor in model.subgraphs[0].tensors:
        tensor.quantization = None
    for spread, step in [(0.0, 0.5 / 8 / 255), (0.01, 0.5 / 8 / 255), (0.1, 0.1 / 255)]:
        output = np.array([[0.5], [0.5 - spread]], np.float32)
        (found,) = output_agreement.output_steps(model, [output])
        assert found == pytest.approx(step)


def test_outputs_that_do_not_vary_are_found():
    constant, zero = np.full((4, 1), 0.5, np.float32), np.zeros((4, 1), np.float32)
    constant[0] += 0.01
    outputs = [constant, np.eye(4), zero, np.array([True, False])]
    assert output_agreement.all_but_constant(outputs) == [0, 2]
