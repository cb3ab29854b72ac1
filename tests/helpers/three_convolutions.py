"""A policy and the measured costs of three convolutions, without a network around them."""

import numpy as np

from dqmq_tf.budget.costs import CostModel
from dqmq_tf.graph.decision_points import ActivationPoint, WeightPoint
from dqmq_tf.layers.step_fitting import weight_integers
from dqmq_tf.policy.bit_width_policy import BitWidthPolicy
from dqmq_tf.targets import get

BITS = tuple(range(2, 9))


def weight_point(index, shape):
    return WeightPoint(
        name=f"conv_{index}:kernel", path=f"conv_{index}", variable="kernel", op_kind="conv",
        channel_axes=(3,), shape=shape, macs=int(np.prod(shape)) * (8 - index), input=index,
        bit_widths=BITS,
    )  # fmt: skip


def activation_point(index, decided):
    return ActivationPoint(
        name=f"x{index}", slots=((f"x{index}", 0, 0),), tensors=(index,),
        bit_widths=BITS if decided else (8,), range="affine", decided=decided,
    )  # fmt: skip


def network(kind, decided, seed=0):
    """A policy and measured costs of three convolutions."""
    shapes = [(3, 3, 3, 16), (3, 3, 16, 32), (1, 1, 32, 48)]
    weights = [weight_point(i, shape) for i, shape in enumerate(shapes)]
    activations = [activation_point(i, decided) for i in range(3)]
    target = get("simulation" if decided else "android")
    costs = CostModel(kind, target, activations, weights)
    random = np.random.default_rng(seed)
    kernels = [random.normal(size=shape) for shape in shapes]

    def integers(i, bits):
        return weight_integers(kernels[i], 3.0 / 2 ** (bits - 1), bits)

    costs.measure(integers)
    policy = BitWidthPolicy(
        activations=[BITS] * 3 if decided else [], weights=[BITS] * 3, groups=2, seed=seed
    )
    policy.build((None, 4))
    return policy, costs


def embeddings(count=64, seed=1):
    return np.random.default_rng(seed).normal(size=(count, 4)).astype("float32")


def assigned(policy):
    return policy.assigned.numpy()[: policy.profiles]
