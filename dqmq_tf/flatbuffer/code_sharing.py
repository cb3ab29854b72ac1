"""Chooses which weight tensors of a file are Huffman-coded, and lets similar ones share a code.

The tables of a code take bytes in the file, and weights of the same bit-width are distributed alike.
Two codes become one where this saves bytes.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping

import numpy as np

from dqmq_tf.flatbuffer import huffman
from dqmq_tf.flatbuffer.huffman import Code
from dqmq_tf.targets import CODE_BYTES, TABLE_BYTES, Storage, Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codable:
    """A weight tensor that may be Huffman-coded.

    Attributes:
        integers: Its integers, in the order of the file.
        other_bytes: The bytes that it takes if it is not Huffman-coded.
    """

    integers: np.ndarray
    other_bytes: int


def storage_alone(
    target: Target,
    op_kind: str,
    bit_width: int,
    integers: np.ndarray,
    per_channel: bool,
    *,
    decoder: bool,
) -> Storage:
    """Returns the smallest `Storage` of a weight tensor that shares its code with no other one.

    Args:
        target, op_kind, bit_width, per_channel, decoder: See `Target.storage`.
        integers: The integers of the tensor.
    """
    storage = functools.partial(
        target.storage, op_kind, bit_width, integers.size, per_channel=per_channel, decoder=decoder
    )
    otherwise = storage()
    if not decoder or "huffman" not in target.codings:
        return otherwise
    room = otherwise.size_bytes - TABLE_BYTES - CODE_BYTES
    return storage(huffman_bytes=huffman.coded_bytes(integers, less_than=room))


def choose_codes(
    tensors: Mapping[str, Codable], tensor_bytes: int, code_bytes: int
) -> dict[str, Code]:
    """Returns the code of each tensor for which Huffman coding saves bytes.

    Only codes whose tensors have similar entropies are compared, so that the search is short.

    Args:
        tensors: `{name: Codable}`.
        tensor_bytes: The bytes that a coded tensor takes in the file beside its words.
        code_bytes: The bytes that a code takes in the file beside its tables.

    Returns:
        `{name: Code}`, without the tensors that take fewer bytes otherwise.
    """

    def code_of(names: Iterable[str]) -> Code:
        return Code.of(np.concatenate([tensors[name].integers.reshape(-1) for name in names]))

    def coded(name: str, code: Code) -> int:
        return code.payload(tensors[name].integers) + tensor_bytes

    def total(names: Iterable[str], code: Code) -> int:
        return sum(coded(name, code) for name in names) + len(code.tables) + code_bytes

    def saved(names: Iterable[str], code: Code) -> int:
        return sum(tensors[name].other_bytes for name in names) - total(names, code)

    groups = [[name] for name in sorted(tensors, key=lambda name: _entropy(tensors[name].integers))]
    codes = [code_of(names) for names in groups]
    position = 0
    while position + 1 < len(groups):
        one, other = groups[position : position + 2]
        both = code_of(one + other)
        apart = total(one, codes[position]) + total(other, codes[position + 1])
        if total(one + other, both) < apart:
            groups[position : position + 2] = [one + other]
            codes[position : position + 2] = [both]
            position = max(position - 1, 0)
        else:
            position += 1
    chosen: dict[str, Code] = {}
    for names, code in zip(groups, codes):
        kept = [n for n in names if coded(n, code) < tensors[n].other_bytes]
        code = code_of(kept) if kept else code
        if kept and saved(kept, code) > 0:
            chosen |= dict.fromkeys(kept, code)
    return chosen


def _entropy(integers: np.ndarray) -> float:
    """Returns the entropy of integers in bits."""
    counts = np.unique(integers, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / counts.sum())
