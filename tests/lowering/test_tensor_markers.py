import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from dqmq_tf import flatbuffer
from dqmq_tf.errors import ConversionError
from dqmq_tf.lowering import float_file, tensor_markers
from dqmq_tf.lowering.tensor_markers import Marker

layers = keras.layers
# Each is a scale of its own, from the smallest to the largest.
NUMBERS = (0, 1, 16_383, 700, 4_097)


def network(mark):
    """Two dense layers with a reshape that changes nothing between them."""
    keras.utils.set_random_seed(0)
    x = inputs = mark(0, keras.Input((4,)))
    x = mark(1, layers.Dense(6, activation="tanh")(x))
    x = mark(2, layers.Reshape((6,))(x))
    hidden = mark(3, layers.Dense(4, activation="tanh")(x))
    return inputs, [hidden, mark(4, layers.Dense(2)(hidden))]


def model_of(numbers):
    entry = []

    def mark(place, tensor):
        if not entry:
            entry.append(tensor)
        return tensor if numbers is None else Marker(numbers[place])(tensor)

    _, outputs = network(mark)
    return keras.Model(entry[0], outputs)


@pytest.fixture(scope="module")
def file():
    """File of the marked network, its markers taken out, and what was marked."""
    model = float_file.export_float(model_of(NUMBERS)).model
    return model, tensor_markers.remove_markers(model)


def names(model):
    return [flatbuffer.operator_name(model, o) for o in model.subgraphs[0].operators]


def test_numbers_come_back(file):
    model, found = file
    graph = model.subgraphs[0]
    shapes = {numbers: tuple(graph.tensors[i].shape) for i, numbers in found.items()}
    assert shapes[0,] == (1, 4) and shapes[700,] == (1, 4) and shapes[4_097,] == (1, 2)
    assert list(found)[0] == graph.inputs[0]


def test_one_tensor_has_the_numbers_of_both_ends_of_a_layer_that_does_nothing(file):
    model, found = file
    assert (1, 16_383) in found.values()
    assert "RESHAPE" not in names(model)


def test_markers_leave_no_trace(file):
    model, _ = file
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(names(model))
    assert all(t.quantization is None or t.quantization.scale is None for t in tensors(model))


def tensors(model):
    return model.subgraphs[0].tensors


def test_file_computes_what_the_model_does_without_them(file):
    model, _ = file
    plain = model_of(None)
    x = np.random.default_rng(0).uniform(-3, 3, (1, 4)).astype("float32")
    contents = flatbuffer.write(model)
    runner = Interpreter(model_content=contents).get_signature_runner()
    (name,) = runner.get_input_details()
    found = runner(**{name: x})
    for key, expected in zip(sorted(found), plain(x), strict=True):
        np.testing.assert_allclose(found[key], expected, atol=1e-5)


def test_outputs_are_the_tensors_that_were_marked(file):
    model, found = file
    (definition,) = model.signatureDefs
    ends = {int(i) for i in model.subgraphs[0].outputs}
    assert ends == {entry.tensorIndex for entry in definition.outputs}
    assert {found[i] for i in ends} == {(700,), (4_097,)}


def test_quantization_of_the_model_itself_is_left_alone():
    """A DEQUANTIZE of a constant is none of a marker's."""
    model = float_file.export_float(model_of(NUMBERS)).model
    graph, schema = model.subgraphs[0], flatbuffer.schema()
    operator = next(o for o in graph.operators if flatbuffer.operator_name(model, o) == "TANH")
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    model.operatorCodes.append(code)
    operator.opcodeIndex = len(model.operatorCodes) - 1
    tensor_markers.remove_markers(model)
    assert names(model).count("DEQUANTIZE") == 1


@pytest.mark.parametrize("number", [-1, 2**14])
def test_too_many_markers(number):
    with pytest.raises(ConversionError, match="more than 16,384 tensors"):
        Marker(number)
