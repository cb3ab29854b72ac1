"""The last pass over a quantized file: containers, names, signature, versions, metadata."""

from dqmq_tf.export import flatbuffer, metadata, versions

_SIGNATURE = b"serving_default"
_ADDED_BY_QUANTIZER = ("_quantized", "_dequant")


def finish(data, skeleton, containers, facts):
    """Turns a quantized file into the one that is delivered.

    Args:
        data: Contents of the quantized file, tensors named by `litert.name_tensors`.
        skeleton: `Skeleton`.
        containers: `{name of a weight tensor: "INT8" or "INT4"}`.
        facts: What `metadata.describe` returned.

    Returns:
        Contents of the finished file.
    """
    model = flatbuffer.read(data)
    graph = model.subgraphs[0]
    _store_in_containers(model, graph, containers)
    _name_inputs_and_outputs(model, graph, skeleton)
    _drop_unused_tensors(model, graph)
    model.description = b"dqmq_tf"
    graph.name = b"main"
    metadata.attach(model, facts, versions.set_versions(model))
    _drop_unused_buffers(model)
    return flatbuffer.write(model)


def _store_in_containers(model, graph, containers):
    int4 = flatbuffer.schema().TensorType.INT4
    for tensor in graph.tensors:
        if containers.get(flatbuffer.text(tensor.name)) == "INT4":
            packed = flatbuffer.pack_int4(flatbuffer.constant(model, tensor))
            flatbuffer.set_constant(model, tensor, packed)
            tensor.type = int4


def _name_inputs_and_outputs(model, graph, skeleton):
    """Signature and float ends get the model's names, their int8 twins the keys."""
    (definition,) = model.signatureDefs
    definition.signatureKey = _SIGNATURE
    entries = sorted(definition.inputs, key=lambda entry: (len(entry.name), entry.name))
    exits = sorted(definition.outputs, key=lambda entry: (len(entry.name), entry.name))
    ends = {}
    for entry, name in zip(entries + exits, [*skeleton.input_names, *skeleton.output_names]):
        entry.name = name.encode()
        ends[entry.tensorIndex] = name
    for index, tensor in enumerate(graph.tensors):
        name = flatbuffer.text(tensor.name)
        base = name
        for suffix in _ADDED_BY_QUANTIZER:
            base = base.removesuffix(suffix)
        if flatbuffer.type_name(tensor) == "FLOAT32":
            # The float twin of a quantized tensor; as an end of the graph it has a name already.
            base = ends.get(index, name)
        tensor.name = base.encode()


def _drop_unused_tensors(model, graph):
    used = {*graph.inputs, *graph.outputs}
    for operator in graph.operators:
        used.update(i for i in (*operator.inputs, *operator.outputs) if i >= 0)
    kept = sorted(int(i) for i in used)
    position = {old: new for new, old in enumerate(kept)} | {-1: -1}
    graph.tensors = [graph.tensors[i] for i in kept]
    graph.inputs = [position[i] for i in graph.inputs]
    graph.outputs = [position[i] for i in graph.outputs]
    for operator in graph.operators:
        operator.inputs = [position[i] for i in operator.inputs]
        operator.outputs = [position[i] for i in operator.outputs]
    for definition in model.signatureDefs:
        for entry in (*definition.inputs, *definition.outputs):
            entry.tensorIndex = position[entry.tensorIndex]


def _drop_unused_buffers(model):
    """Buffer 0 stands for every tensor that has no values in the file."""
    kept, position = [flatbuffer.schema().BufferT()], {}

    def place(old):
        data = model.buffers[old].data
        if data is None or not len(data):
            return 0
        key = bytes(data)
        if key not in position:
            position[key] = len(kept)
            kept.append(model.buffers[old])
        return position[key]

    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = place(tensor.buffer)
    for entry in model.metadata:
        entry.buffer = place(entry.buffer)
    model.buffers = kept
