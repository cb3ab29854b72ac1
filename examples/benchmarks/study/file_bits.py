"""Finds bits for a network whose file meets a budget of bytes after deflate."""

import pathlib
import tempfile

import dqmq_tf
from study import assignments

# Training changes the compressed size of the weights by about a percent, so leave some room.
_ROOM = 0.985
# Largest number of proposals until a file meets the budget, and the share of the budget by which the limit
# is lowered if a proposal repeats the same bits.
_PROPOSALS, _STEP = 12, 0.004


def proposed(propose, file_bytes, budget):
    """Returns bits that a method proposes and whose file meets the budget.

    A method only estimates the size of the file, so its limit is lowered until the file fits.

    Args:
        propose: Function of a limit in bytes. Returns `{point name: bits}`.
        file_bytes: Function of such bits. Returns the size of their file.
        budget: Bytes of the file after deflate.

    Raises:
        ValueError: If no proposal meets the budget.
    """
    limit, before = budget, None
    for _ in range(_PROPOSALS):
        bits = propose(limit)
        excess = file_bytes(bits) - _ROOM * budget
        if excess <= 0:
            return bits
        # If the limit falls by less than a bit saves, the same bits are proposed again.
        limit -= excess if bits != before else max(excess, _STEP * budget)
        before = bits
    raise ValueError(f"Found no bit-widths whose file meets {budget:,} bytes after deflate.")


def uniform(costs, file_bytes, budget):
    """Returns the uniform bits with the most weight bits whose file meets the budget.

    Args:
        costs: The `CostModel` of the network.
        file_bytes, budget: See `proposed`.

    Raises:
        ValueError: If 2 bits exceed the budget.
    """
    for width in range(8, 1, -1):
        bits = assignments.uniform(costs, width, 8)
        if file_bytes(bits) <= _ROOM * budget:
            return bits
    raise ValueError(f"No uniform bit-widths meet {budget:,} bytes after deflate.")


def measure(model, target, images, seed):
    """Returns a function of bits. It returns the size of the file before training, after deflate.

    Args:
        model: A float network.
        target: Name of a deployment target.
        images: Images that calibrate the network, float32.
        seed: Seed of the configuration.
    """

    def file_bytes(bits):
        network = assignments.fixed(model, bits, target, seed)
        network.calibrate(images)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.tflite"
            frozen = network.freeze(profiles=1)
            return dqmq_tf.convert(frozen, path, data=images, verify=False).download_bytes

    return file_bytes
