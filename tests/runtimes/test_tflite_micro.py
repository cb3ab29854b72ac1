import numpy as np
import pytest
from helpers.frozen_models import images

from dqmq_tf import export, flatbuffer
from dqmq_tf.errors import VerificationError
from dqmq_tf.flatbuffer import TFLiteFile
from dqmq_tf.runtimes import tflite_micro
from dqmq_tf.runtimes.random_inputs import random_inputs_of


@pytest.fixture(scope="module")
def int8_file(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "small.tflite"
    export.convert(small, path, io_dtype="int8", data=images(small), verify=False)
    return path.read_bytes()


def test_tflite_micro_computes_what_the_model_computes(small, int8_file):
    part = flatbuffer.read(int8_file).subgraphs[0]
    grid = part.tensors[part.inputs[0]].quantization
    inputs = random_inputs_of(TFLiteFile(int8_file), 20)
    # The inputs cover the grid and do not leave it.
    integers = inputs[0] / grid.scale[0] + grid.zeroPoint[0]
    assert integers.min() == pytest.approx(-128, abs=1)
    assert integers.max() == pytest.approx(127, abs=1)
    (found,) = tflite_micro.run(int8_file, inputs).outputs
    np.testing.assert_allclose(found, small.predict(inputs[0], verbose=0), atol=3 / 256)


def test_a_file_with_float_inputs_gets_the_same_random_inputs_as_one_with_int8_inputs(
    small_file, int8_file
):
    float_ends, int8_ends = (
        random_inputs_of(TFLiteFile(c), 2) for c in (small_file[0].read_bytes(), int8_file)
    )
    np.testing.assert_array_equal(float_ends[0], int8_ends[0])
    (found,) = tflite_micro.run(small_file[0].read_bytes(), float_ends).outputs
    np.testing.assert_array_equal(found, tflite_micro.run(int8_file, int8_ends).outputs[0])


def test_the_arena_is_the_smallest_in_which_a_file_starts(int8_file):
    from tflite_micro.python.tflite_micro import runtime

    found = tflite_micro.arena_bytes(int8_file)
    runtime.Interpreter.from_bytes(int8_file, arena_size=found)
    with pytest.raises(RuntimeError):
        runtime.Interpreter.from_bytes(int8_file, arena_size=found - 16)


def test_the_error_contains_the_message_of_tflite_micro(int8_file):
    file = TFLiteFile(int8_file)
    model = file.model
    for code in model.operatorCodes:
        if flatbuffer.builtin_name(code) == "MEAN":
            code.builtinCode = flatbuffer.schema().BuiltinOperator.GELU
            code.deprecatedBuiltinCode = 127
    file.edited()
    with pytest.raises(VerificationError, match="refuses the file.*GELU"):
        tflite_micro.run(file, random_inputs_of(file, 1))
