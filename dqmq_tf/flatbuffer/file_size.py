"""Sizes of a file as a device stores it and as a network carries it."""

import zlib

_COMPRESSION_LEVEL = 9


def deflated_bytes(data):
    """Bytes that `data` takes after deflate at its strongest level.

    An app store or an over-the-air update carries a model compressed, so this is the
    size that fewer bits in an INT8 container buy.

    Args:
        data: A bytes-like object, such as the contents of a `.tflite` file.

    Returns:
        Size of the compressed stream in bytes.

    Example:
        >>> deflated_bytes(bytes(1000)) < 50
        True
    """
    return len(zlib.compress(data, _COMPRESSION_LEVEL))


def file_bytes(contents):
    """Returns the bytes of a file in the unit of each budget that is in bytes."""
    return {"size_bytes": len(contents), "download_bytes": deflated_bytes(contents)}
