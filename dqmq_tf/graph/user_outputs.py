"""Which tensors the quantizers of a TFMOT `QuantizeConfig` quantize, and which it leaves alone."""

import dataclasses
from typing import Any

from dqmq_tf.config import DQMQConfig
from dqmq_tf.graph.fusion import fused_tensors
from dqmq_tf.graph.graph import Graph


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserOutput:
    """The quantizers of the user's own for a tensor.

    Attributes:
        path: The path of the layer whose config has them.
        quantizers: Their names and the quantizers.
        bit_widths: The one bit-width that counts in the cost, or None for those of the rules.
    """

    path: str
    quantizers: tuple[tuple[str, Any], ...]
    bit_widths: tuple[int, ...] | None


def user_quantized(graph: Graph, config: DQMQConfig) -> dict[int, UserOutput]:
    """Returns the quantizers of the user's own by the tensor that they quantize.

    An integer kernel writes one tensor. If a batch norm or relu is part of the kernel, the tensor
    is its output, not that of the layer with the config.
    """
    fused = fused_tensors(graph)
    outputs = {}
    for node in graph.nodes:
        user = config.rule_for(node.path).user_quantizers
        for tensor in node.outputs if user is not None and user.outputs else ():
            while tensor in fused:
                tensor = graph.consumers[tensor][0].outputs[0]
            outputs[tensor] = UserOutput(
                path=node.path, quantizers=user.outputs, bit_widths=user.output_bits
            )
    return outputs


def user_floats(graph: Graph, config: DQMQConfig) -> set[int]:
    """Returns the outputs that a config of the user's own leaves in floating point."""
    users = [(node, config.rule_for(node.path).user_quantizers) for node in graph.nodes]
    return {
        tensor
        for node, user in users
        for tensor in node.outputs
        if user is not None and user.has_float_output
    }
