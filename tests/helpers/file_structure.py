"""What a `.tflite` file computes, without the order of its operators and tensors."""

import hashlib

from dqmq_tf import flatbuffer


def structure(contents):
    """Returns a digest of each operator of each subgraph, sorted.

    An operator's digest depends on its kind, version and options, on the type, shape, quantization and
    values of its constants, and on the digests of the operators before it.
    """
    model = flatbuffer.read(contents)
    return [_digests(model, graph) for graph in model.subgraphs]


def _digests(model, graph):
    made = {int(i): f"input {n}" for n, i in enumerate(graph.inputs)}
    found = []
    for operator in graph.operators:
        operands = [_operand(model, graph, int(i), made) for i in operator.inputs]
        options = _fields(operator.builtinOptions), _fields(operator.builtinOptions2)
        custom = operator.customOptions
        code = model.operatorCodes[operator.opcodeIndex]
        kind = flatbuffer.operator_name(model, operator), code.version
        results = [_described(model, graph.tensors[i]) for i in operator.outputs]
        whole = (kind, options, None if custom is None else bytes(custom), operands, results)
        digest = hashlib.sha256(repr(whole).encode()).hexdigest()
        made |= {int(i): f"{digest} {n}" for n, i in enumerate(operator.outputs)}
        found.append(digest)
    return sorted(found), [made[int(i)] for i in graph.outputs]


def _operand(model, graph, index, made):
    if index < 0 or index in made:
        return made.get(index)
    tensor = graph.tensors[index]
    return _described(model, tensor), bytes(model.buffers[tensor.buffer].data)


def _described(model, tensor):
    quantization = _fields(tensor.quantization)
    return flatbuffer.type_name(tensor), [int(n) for n in tensor.shape], quantization


def _fields(part):
    """Returns the fields of an object of the schema as text."""
    if part is None:
        return None
    return sorted((name, str(value)) for name, value in vars(part).items())
