"""The decisions of the policy on the inputs of a summary, and its distributions."""

import numpy as np
from keras import ops

from dqmq_tf.model import DQMQModel
from dqmq_tf.report.rows import Distribution

# Embeddings that the policy sees at once.
_CHUNK = 1024


class DecisionStatistics:
    """The decisions of the policy, and its distributions, at N quality embeddings.

    Args:
        qmodel: The model.
        embeddings: The quality embeddings, shape `[N, d]`.

    Attributes:
        weights: The bits of the weights, int array `[N, weight points]`.
        activations: The bits of the activations that are decided, int array `[N, points]`.
        inputs: The bits of each layer's input, int array `[N, weight points]`.
        group_weights: The bits of the weights in each group, int array `[groups, weight points]`.
        groups: The number of groups (`profiles` of a `Summary`).
        bits_vary_by: See `Summary`.
    """

    def __init__(self, qmodel: DQMQModel, embeddings: np.ndarray) -> None:
        policy, costs = qmodel._parts.policy, qmodel._parts.costs
        count = len(embeddings)
        weights, activations, means, probabilities = [], [], [], []
        for start in range(0, count, _CHUNK):
            z = ops.convert_to_tensor(embeddings[start : start + _CHUNK])
            decision = {
                key: ops.convert_to_numpy(value) for key, value in policy(z, training=False).items()
            }
            self.group_weights = decision["weights"][..., 0].astype("int64")
            weights.append(self.group_weights[decision["group"]])
            activations.append(decision["activations"][..., 0])
            mean = policy.means(z)
            means.append(policy.bits_at(ops.convert_to_numpy(mean)).sum(axis=0) / count)
            p = np.exp(ops.convert_to_numpy(policy.log_probabilities(mean)))
            probabilities.append(p.sum(axis=0) / count)
        self.weights = np.concatenate(weights)
        self.activations = np.concatenate(activations).astype("int64")
        self.inputs = np.tile(costs.input_bits.astype("int64"), (count, 1))
        is_decided = costs.input_column >= 0
        self.inputs[:, is_decided] = self.activations[:, costs.input_column[is_decided]]
        self.groups = len(self.group_weights)
        self.bits_vary_by = policy.bits_vary_by
        self._policy = policy
        self._means, self._probabilities = np.sum(means, axis=0), np.sum(probabilities, axis=0)
        # A level above 8 bits stands for 8 bits.
        widths = policy.bits_at(policy.highest) - policy.bits_at(policy.highest - 1.0)
        self._sigma = ops.convert_to_numpy(policy.sigma()) * widths.astype("float32")

    def files(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns the weight bits and the activation bits of each file that the inputs would use."""
        count = self.weights.shape[1]
        if not self.activations.shape[1]:
            return [(bits, self.activations[:0]) for bits in self.group_weights]
        rows = np.unique(np.concatenate([self.weights, self.activations], axis=1), axis=0)
        return [(row[:count], row[count:]) for row in rows]

    def distribution(self, point: int) -> Distribution:
        """Returns the `Distribution` of a decision point. Activations come first."""
        is_allowed = self._policy.allowed[point] > 0
        return Distribution(
            mean=float(self._means[point]),
            sigma=float(self._sigma[point]),
            bit_widths=tuple(int(b) for b in self._policy.bit_widths[is_allowed]),
            probabilities=tuple(self._probabilities[point][is_allowed].tolist()),
        )
