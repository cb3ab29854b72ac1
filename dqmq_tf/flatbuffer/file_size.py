"""Size of a file as a device stores it, and as a download transfers it."""

import zlib

_COMPRESSION_LEVEL = 9


def deflated_bytes(data: bytes, before: bytes = b"") -> int:
    """Returns the size of `data` under deflate at its strongest level.

    App stores and over-the-air updates transfer a model compressed, so this is the size that
    fewer bits in an INT8 container reduce.

    Args:
        data: Bytes, such as the contents of a `.tflite` file.
        before: What precedes the data. Deflate finds in it what the data repeat. It is not counted.

    Returns:
        Size of the compressed stream in bytes.

    Example:

    >>> deflated_bytes(bytes(1000)) < 50
    True
    """
    compressor = zlib.compressobj(_COMPRESSION_LEVEL, zdict=before)
    return len(compressor.compress(data)) + len(compressor.flush())


def file_bytes(contents: bytes) -> dict[str, int]:
    """Returns the size of a file in the unit of each budget that is in bytes.

    Args:
        contents: Contents of a `.tflite` file.

    Returns:
        `{"size_bytes": …, "download_bytes": …}`.
    """
    return {"size_bytes": len(contents), "download_bytes": deflated_bytes(contents)}
