"""Predictions without a graph, whose tracing takes longer than all else that a small model does."""

import keras


def predicted(model, data):
    """Returns the outputs of a model in inference mode, as NumPy arrays.

    What a graph computes is tested in `tests/training/test_one_graph.py`.

    Args:
        model: A Keras model.
        data: One batch of inputs: an array, or arrays in the structure of the model's inputs.
    """
    inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, data)
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(inputs, training=False))
