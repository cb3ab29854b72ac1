import numpy as np
import pytest

from dqmq_tf import flatbuffer
from dqmq_tf.errors import FileFormatError


def named(model, name):
    return next(t for t in model.subgraphs[0].tensors if flatbuffer.text(t.name) == name)


def shape_of_another_size(model):
    named(model, "w0").shape = np.array([6, 3, 3, 67], np.int32)


def length_that_overflows(model):
    named(model, "w0").shape = np.array([2**30, 2**30, 2**30, 2**30], np.int32)


def unknown_type(model):
    named(model, "w0").type = 66


def buffer_of_tensor(model):
    named(model, "w0").buffer = 1000


def buffer_of_metadata(model):
    model.metadata[0].buffer = 1000


def name_that_is_not_text(model):
    named(model, "w0").name = b"\xff"


def code_of_operator(model):
    model.subgraphs[0].operators[0].opcodeIndex = 40


def unknown_operator(model):
    model.operatorCodes[0].builtinCode = 30_000


def tensor_of_operator(model):
    model.subgraphs[0].operators[0].inputs = np.array([1000], np.int32)


def output_of_graph(model):
    model.subgraphs[0].outputs = np.array([-1], np.int32)


def tensor_of_signature(model):
    model.signatureDefs[0].inputs[0].tensorIndex = 1000


def subgraph_of_signature(model):
    model.signatureDefs[0].subgraphIndex = 3


DAMAGES = {
    shape_of_another_size: "'w0' has 162 bytes, but its shape needs 3618",
    length_that_overflows: "but its shape needs",
    unknown_type: "'w0' has an unknown type",
    buffer_of_tensor: "the buffer of tensor 'w0' is missing",
    buffer_of_metadata: "the buffer of metadata is missing",
    name_that_is_not_text: "UnicodeDecodeError",
    code_of_operator: "the code of an operator is missing",
    unknown_operator: "the code of an operator is unknown",
    tensor_of_operator: "a tensor of an operator is missing",
    output_of_graph: "an input or output is missing",
    tensor_of_signature: "a tensor of a signature is missing",
    subgraph_of_signature: "the subgraph of a signature is missing",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_file_with_a_damaged_field_is_refused_by_the_name_of_the_field(small_file, damage):
    model = flatbuffer.read(small_file[0].read_bytes())
    damage(model)
    with pytest.raises(FileFormatError, match=f"truncated or corrupt .*{DAMAGES[damage]}"):
        flatbuffer.read(flatbuffer.write(model))
