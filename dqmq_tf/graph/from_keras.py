"""Reads a Keras model into a `Graph`, through its public config alone."""

import dataclasses

import keras

from dqmq_tf.graph.graph import Graph, Node, inline


def trace(model):
    """Returns the inlined `Graph` of a built Sequential or functional model.

    Args:
        model: A Keras 3 Sequential or functional model, nested models and shared layers included.

    Returns:
        A `Graph` without subgraphs, in execution order.

    Raises:
        ValueError: If the model is subclassed, not built, or not made of Keras 3 layers.

    Example:

    >>> graph = dqmq_tf.graph.trace(model)
    >>> [node.path for node in graph.nodes]
    """
    return inline(trace_nested(model))


def trace_nested(model, prefix=""):
    """Returns the `Graph` of a model with nested models kept as nodes with a `subgraph`."""
    functional = _functional(model)
    config = functional.get_config()
    operations = {operation.name: operation for operation in functional.operations}
    inputs = [entry["name"] for entry in config["layers"] if not entry["inbound_nodes"]]
    ids, shapes, dtypes, specs = {}, {}, {}, {}

    def define(key, spec):
        ids[key] = len(ids)
        specs[key] = spec
        shapes[ids[key]] = tuple(spec.shape)
        dtypes[ids[key]] = keras.backend.standardize_dtype(spec.dtype)
        return ids[key]

    for name in inputs:
        define((name, 0, 0), operations[name].output)
    pending, subgraphs, nodes = [], {}, []
    for entry in config["layers"]:
        name = entry["name"]
        if entry["inbound_nodes"] and _is_model(operations[name]):
            subgraphs[name] = trace_nested(operations[name], prefix=f"{prefix}{name}/")
        for call, data in enumerate(entry["inbound_nodes"]):
            taken = []
            arguments = (_decode(data["args"], taken), _decode(data["kwargs"], taken))
            pending.append((name, call, arguments, taken))
    while pending:
        waiting = []
        for name, call, arguments, taken in pending:
            if any(reference.key not in ids for reference in taken):
                waiting.append((name, call, arguments, taken))
                continue
            args, kwargs = _fill(arguments, specs)
            results = _results(operations[name], args, kwargs)
            nodes.append(
                Node(
                    path=prefix + name,
                    call=call,
                    layer=operations[name],
                    inputs=tuple(ids[reference.key] for reference in taken),
                    outputs=tuple(define((name, call, i), r) for i, r in enumerate(results)),
                    arguments=_Arguments(arguments, ids),
                    subgraph=subgraphs.get(name),
                )
            )
        if len(waiting) == len(pending):
            raise ValueError(
                f"The calls of model {model.name!r} cannot be put in order: "
                f"{sorted({item[0] for item in pending})} wait for each other."
            )
        pending = waiting

    def resolve(key):
        name, call, index = key
        # Keras counts the calls of a nested functional model from 1 in this part of the config.
        shift = name in subgraphs and not isinstance(operations[name], keras.Sequential)
        return ids[(name, call - shift, index)]

    names = {number: key[0] for key, number in ids.items()}
    input_structure = _map_keys(config["input_layers"], resolve)
    output_structure = _map_keys(config["output_layers"], resolve)
    return Graph(
        nodes=tuple(nodes),
        inputs=tuple(keras.tree.flatten(input_structure)),
        outputs=tuple(keras.tree.flatten(output_structure)),
        input_structure=input_structure,
        output_structure=output_structure,
        shapes=shapes,
        dtypes=dtypes,
        input_names=tuple(names[t] for t in keras.tree.flatten(input_structure)),
    )


def _results(operation, args, kwargs):
    """What a call returns, as KerasTensors."""
    results = keras.tree.flatten(operation.compute_output_spec(*args, **kwargs))
    if not isinstance(operation, keras.layers.EinsumDense):
        return results
    # An `output_shape` of None says nothing of a size that the input has.
    (result,), kernel = results, keras.KerasTensor(operation.kernel.shape)
    exact = keras.ops.einsum(operation.equation, *keras.tree.flatten((args, kwargs))[:1], kernel)
    return [keras.KerasTensor(exact.shape, dtype=result.dtype)]


@dataclasses.dataclass(frozen=True)
class _Reference:
    key: tuple


@dataclasses.dataclass(frozen=True)
class _Arguments:
    arguments: tuple
    ids: dict

    def __call__(self, values):
        return _fill(self.arguments, {key: values[i] for key, i in self.ids.items() if i in values})


def _fill(arguments, values):
    """`(args, kwargs)` with each reference replaced by its value."""

    def fill(value):
        if isinstance(value, _Reference):
            return values[value.key]
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(fill(item) for item in value)
        return value

    args, kwargs = arguments
    return tuple(fill(args)), fill(kwargs)


def _decode(value, taken):
    """Serialized call arguments with tensors as `_Reference`s, which are also listed in `taken`."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            reference = _Reference(tuple(value["config"]["keras_history"]))
            taken.append(reference)
            return reference
        if value.get("class_name") == "__tuple__":
            return tuple(_decode(item, taken) for item in value["config"]["value"])
        if "class_name" in value and "config" in value:
            return keras.saving.deserialize_keras_object(value)
        return {key: _decode(item, taken) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_decode(item, taken) for item in value)
    return value


def _map_keys(value, function):
    if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        return function(value)
    if isinstance(value, dict):
        return {key: _map_keys(item, function) for key, item in value.items()}
    return [_map_keys(item, function) for item in value]


def _is_model(operation):
    # A subclassed model inside a graph is a layer like any other: it has no graph of its own.
    return isinstance(operation, keras.Model) and bool(getattr(operation, "inputs", None))


def _functional(model):
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"Expected a Keras 3 model, found {type(model).__module__}.{type(model).__name__}. "
            "Models of tf_keras or TFMOT have to be rebuilt with Keras 3 layers (import keras)."
        )
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            f"Sequential model {model.name!r} has no input shape yet: give it a keras.Input first, "
            "or call model.build(input_shape)."
        )
    try:
        inputs, outputs = model.inputs, model.outputs
    except AttributeError:
        inputs = None
    if not inputs:
        raise ValueError(
            f"Model {model.name!r} is subclassed ({type(model).__name__}): its layers cannot be "
            "seen. Build it as keras.Sequential or with the functional API, "
            "keras.Model(inputs, outputs)."
        )
    structure = model.input if not isinstance(model, keras.Sequential) else inputs[0]
    result = model.output if not isinstance(model, keras.Sequential) else outputs[0]
    return keras.Model(structure, result, name=model.name)
