"""Graphs with thousands of layers in a row."""

import contextlib
import sys
from collections.abc import Iterator

# Far more than the layers of any network that people train.
_LIMIT = 50_000


@contextlib.contextmanager
def deep_graphs() -> Iterator[None]:
    """Lets Keras create models whose graph is deeper than Python's recursion limit, 1,000 by default.

    Keras calls itself once for each layer between an output and the inputs. A quantized model has
    some two layers for each layer of the float model, so the limit would be reached by networks that
    are half as deep as those that Keras can create.

    Example:

    >>> with deep_graphs():
    ...     model = keras.Model(inputs, outputs)
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _LIMIT))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)
