"""Refuses weights that a training has made NaN or infinite. They are no integers of any step."""

import keras
import numpy as np

from dqmq_tf.errors import ConversionError
from dqmq_tf.graph.graph import Graph
from dqmq_tf.graph.kernels import kernel_variables


def check_finite_weights(graph: Graph) -> None:
    """Raises `ConversionError` if a kernel or a trainable variable holds NaN or infinity.

    Args:
        graph: The graph of the model. Other variables, such as masks, may hold infinity.
    """
    for node in graph.nodes:
        trained = getattr(node.layer, "trainable_variables", ())
        for variable in (*kernel_variables(node.layer).values(), *trained):
            count = int((~np.isfinite(keras.ops.convert_to_numpy(variable))).sum())
            if count:
                raise ConversionError(
                    f"Layer {node.path!r}: {count} of the weights in {variable.name!r} are NaN or "
                    "infinity, so they have no bits. The training diverged: check labels and loss "
                    "for NaN, lower the learning rate, and train again from the float model or a "
                    "checkpoint."
                )
