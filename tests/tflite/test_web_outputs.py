"""The web page in Chromium computes what LiteRT computes in Python, bit for bit."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from helpers import web_page
from helpers.web_files import COUNT, litert

import dqmq_tf
from dqmq_tf import flatbuffer
from dqmq_tf.flatbuffer import TFLiteFile


def outputs_of(results):
    return np.array([result["outputs"][0] for result in results], "float32").reshape(
        len(results), -1
    )


def test_a_static_file_gives_the_same_bits(tab, files):
    results, _ = web_page.run(tab, files["static"], files.floats)
    expected = litert(files["static"], files.fed())
    np.testing.assert_array_equal(outputs_of(results), expected)
    assert len(np.unique(expected, axis=0)) > COUNT / 2
    assert {(result["profile"], result["exposure"]) for result in results} == {(None, None)}


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_channels_have_the_order_that_the_file_names(dtype, tab):
    script = """async ({type, color}) => {
      const {inputValues} = await import("./model.js");
      const input = {type, mean: [0, 0, 0], std: [1, 1, 1], color, channels: 3};
      return [...inputValues(input, {values: Float32Array.of(1, 2, 3, 4, 5, 6)})];
    }"""
    assert tab.evaluate(script, {"type": dtype, "color": "RGB"}) == [1, 2, 3, 4, 5, 6]
    assert tab.evaluate(script, {"type": dtype, "color": "BGR"}) == [3, 2, 1, 6, 5, 4]


@pytest.mark.filterwarnings("ignore:.*experimental_preserve_all_tensors")
def test_a_file_with_exposure_gives_the_same_bits_and_its_numbers(tab, files):
    contents = files["exposure"]
    results, _ = web_page.run(tab, contents, files.floats)
    np.testing.assert_array_equal(outputs_of(results), litert(contents, files.floats))
    for name, tensor in exposure_tensors(contents).items():
        found = np.float32([result["exposure"][name] for result in results])
        np.testing.assert_array_equal(found, inner_numbers(contents, tensor, files.floats))
        assert len(np.unique(found)) > 8
    gains = [result["exposure"]["gain"] for result in results]
    contrasts = files.floats.mean(-1).std((1, 2))
    assert np.corrcoef(np.log(gains), np.log(contrasts))[0, 1] < -0.9


def exposure_tensors(contents):
    """The tensors of the black point and the gain: what is subtracted, and the factor of that."""
    model = TFLiteFile.of(contents).model
    operators = [
        (flatbuffer.operator_name(model, operator), operator)
        for operator in model.subgraphs[0].operators
    ]
    (product,) = [operator for name, operator in operators if name == "MUL"]
    lifted, gain = product.inputs
    (lift,) = [
        operator for name, operator in operators if name == "SUB" and lifted in operator.outputs
    ]
    return {"black": int(lift.inputs[1]), "gain": int(gain)}


def inner_numbers(contents, tensor, inputs):
    """The values of a tensor with one number, for each input."""
    interpreter = Interpreter(model_content=contents, experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    (details,) = [entry for entry in interpreter.get_tensor_details() if entry["index"] == tensor]
    scale, zero_point = details["quantization"]
    numbers = []
    for image in inputs:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        interpreter.invoke()
        integer = int(interpreter.get_tensor(tensor).ravel()[0])
        numbers.append(np.float32(scale) * np.float32(integer - zero_point))
    return np.float32(numbers)


@pytest.mark.parametrize("routing", ["signatures", "graph"])
def test_an_adaptive_file_gives_the_same_bits_and_profiles(tab, files, routing):
    expected = dqmq_tf.AdaptiveInterpreter(files[routing])(files.floats)
    results, _ = web_page.run(tab, files[routing], files.floats)
    np.testing.assert_array_equal(outputs_of(results), expected.outputs[0])
    profiles = [result["profile"] for result in results]
    np.testing.assert_array_equal(profiles, expected.profile)
    assert set(profiles) == {0, 1}


def test_int4_weights_do_not_give_the_same_bits(tab, files):
    """If this fails, LiteRT.js has changed: README.md of the page and `docs/` say otherwise."""
    results, milliseconds = web_page.run(tab, files["int4"], files.floats)
    _, int8_milliseconds = web_page.run(tab, files["plain"], files.floats[:1])
    found, expected = outputs_of(results), litert(files["int4"], files.floats)
    equal = (found == expected).all(-1).sum()
    ratio = milliseconds / int8_milliseconds
    print(f"INT4: {equal} of {COUNT} outputs are equal; {ratio:.1f} times the time of INT8")
    assert equal < COUNT
    np.testing.assert_allclose(found, expected, atol=3 / 256)
