"""Sizes of a file as a device stores it and as a network carries it."""

import zlib

_COMPRESSION_LEVEL = 9
_STRETCH = 8192
_STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY)


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


def searched_deflate(data):
    """A deflate stream by an encoder that looks for the smallest, as Zopfli does.

    zlib takes a match of three or four bytes wherever it finds one, though integers of few bits
    cost less one by one: at 4 bits a seventh of the stream. Here each stretch is encoded by
    whichever of zlib's strategies is smallest. Every inflate reads the result; `zipalign -z` of the
    Android SDK (Zopfli) reaches about the same.

    Args:
        data: A bytes-like object.

    Returns:
        A raw deflate stream (RFC 1951).

    Example:
        >>> zlib.decompress(searched_deflate(b"weights"), -zlib.MAX_WBITS)
        b'weights'
    """
    data, stream = bytes(data), b""
    for start in range(0, max(len(data), 1), _STRETCH):
        stretch, last = data[start : start + _STRETCH], start + _STRETCH >= len(data)
        stream += min((_encoded(stretch, s, last) for s in _STRATEGIES), key=len)
    return stream


def _encoded(data, strategy, last):
    encoder = zlib.compressobj(
        _COMPRESSION_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy
    )
    return encoder.compress(data) + encoder.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)


def file_bytes(contents):
    """Returns the bytes of a file in the unit of each budget that is in bytes."""
    return {"size_bytes": len(contents), "download_bytes": deflated_bytes(contents)}
