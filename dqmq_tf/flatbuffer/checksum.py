"""A seal at the end of a file, by which damage is seen before any parser or runtime reads it.

Runtimes trust a file: one flipped bit in a table of the flatbuffer can end the process. The seal
stands behind the flatbuffer, where every runtime ignores it.
"""

import hashlib
import pathlib

from dqmq_tf.errors import FileFormatError

MAGIC = b"DQMQSEAL"
_LENGTH = len(MAGIC) + hashlib.sha256().digest_size


def seal(contents):
    """Returns the contents of a file with its seal: 8 bytes of magic and a SHA-256 behind it."""
    return contents + MAGIC + hashlib.sha256(contents).digest()


def load(path):
    """Reads a file that dqmq_tf wrote.

    Args:
        path: Path of a `.tflite` file.

    Returns:
        Its contents, bytes.

    Raises:
        FileNotFoundError: If there is no such file.
        FileFormatError: If the file is truncated or corrupt, or was not written by dqmq_tf.
    """
    contents = pathlib.Path(path).read_bytes()
    body, magic = contents[:-_LENGTH], contents[-_LENGTH:][: len(MAGIC)]
    if magic != MAGIC:
        raise FileFormatError(
            f"{path} has no seal of dqmq_tf at its end ({len(contents):,} bytes): it is truncated, "
            "or dqmq_tf.convert did not write it. Convert the model again."
        )
    if contents[-_LENGTH:] != seal(body)[-_LENGTH:]:
        raise FileFormatError(
            f"{path} is corrupt: its {len(contents):,} bytes do not match the checksum at its end. "
            "Copy it again, or convert the model again."
        )
    return contents
