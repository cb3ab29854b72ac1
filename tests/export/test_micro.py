import numpy as np
import pytest

from dqmq_tf import export
from dqmq_tf.export import flatbuffer, micro
from dqmq_tf.export.errors import VerificationError

from .conftest import images


@pytest.fixture(scope="module")
def int8_file(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "small.tflite"
    export.convert(small, path, io="int8", data=images(small), verify=False)
    return path.read_bytes()


def test_it_computes_what_the_model_computes(small, int8_file):
    model = flatbuffer.read(int8_file)
    part = model.subgraphs[0]
    source = part.tensors[part.inputs[0]].quantization
    integers = micro.random_inputs(model, 20)
    real = source.scale[0] * (integers[0].astype("float32") - source.zeroPoint[0])
    (found,) = micro.run(int8_file, integers).outputs
    assert found.dtype == np.int8
    expected = small.predict(real, verbose=0)
    np.testing.assert_allclose((found + 128.0) / 256, expected, atol=3 / 256)


def test_float_ends(small_file):
    contents = small_file[0].read_bytes()
    inputs = micro.random_inputs(flatbuffer.read(contents), 2)
    assert inputs[0].dtype == np.float32
    assert np.ptp(inputs[0]) > 1.5  # the range of the images that calibrated it
    (found,) = micro.run(contents, inputs).outputs
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=0.05)


def test_the_arena_is_the_smallest(int8_file):
    from tflite_micro.python.tflite_micro import runtime

    found = micro.arena_bytes(int8_file)
    runtime.Interpreter.from_bytes(int8_file, arena_size=found)
    with pytest.raises(RuntimeError):
        runtime.Interpreter.from_bytes(int8_file, arena_size=found - 16)


def test_what_tflm_says_is_told(int8_file):
    model = flatbuffer.read(int8_file)
    for code in model.operatorCodes:
        if flatbuffer.builtin_name(code) == "MEAN":
            code.builtinCode = flatbuffer.schema().BuiltinOperator.GELU
            code.deprecatedBuiltinCode = 127
    with pytest.raises(VerificationError, match="cannot run the file; it ended.*GELU"):
        micro.run(flatbuffer.write(model), micro.random_inputs(model, 1))
