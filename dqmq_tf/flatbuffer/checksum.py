"""The checksum at the end of a file, which detects damage before a parser or a runtime reads it.

Runtimes trust their file: one flipped bit in a table of the flatbuffer can crash the process. The
checksum stands behind the flatbuffer, where every runtime ignores it.
"""

import hashlib
import os
import pathlib

from dqmq_tf.errors import FileFormatError

MAGIC = b"DQMQSEAL"
LENGTH = len(MAGIC) + hashlib.sha256().digest_size


def seal(contents: bytes) -> bytes:
    """Returns the contents of a file with a checksum appended.

    Args:
        contents: Contents of a `.tflite` file.

    Returns:
        The contents, 8 bytes of magic, and the SHA-256 of the contents.
    """
    return contents + MAGIC + hashlib.sha256(contents).digest()


def is_sealed(contents: bytes) -> bool:
    """Returns whether the contents of a file end in a checksum, which may or may not match."""
    return contents[-LENGTH:][: len(MAGIC)] == MAGIC


def load(path: str | os.PathLike[str]) -> bytes:
    """Reads a file that dqmq_tf wrote, and checks it against its checksum.

    Args:
        path: Path of a `.tflite` file.

    Returns:
        The contents of the file, checksum included.

    Raises:
        FileNotFoundError: If there is no such file.
        FileFormatError: If the file is truncated or corrupt, or dqmq_tf did not write it.
    """
    contents = pathlib.Path(path).read_bytes()
    if not is_sealed(contents):
        raise FileFormatError(
            f"{path} has no dqmq_tf checksum at its end ({len(contents):,} bytes): it is "
            "truncated, or dqmq_tf.convert did not write it. Convert the model again."
        )
    if contents != seal(contents[:-LENGTH]):
        raise FileFormatError(
            f"{path} is corrupt: its {len(contents):,} bytes do not match the checksum at its end. "
            "Copy it again, or convert the model again."
        )
    return contents
