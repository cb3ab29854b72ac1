"""The operations of a graph that its result is computed from."""


def needed_operations(graph):
    """Returns the operations on which the first output of a `tf.Graph` depends.

    A function's graph also holds operations that nobody reads. TensorFlow leaves them out when it runs.
    """
    needed, todo = {}, [graph.outputs[0].op]
    while todo:
        operation = todo.pop()
        if operation.name not in needed:
            needed[operation.name] = operation
            todo += [tensor.op for tensor in operation.inputs]
    return list(needed.values())
