"""Loads the files that a command gets."""

import pathlib
from collections.abc import Callable
from typing import TypeVar

_Loaded = TypeVar("_Loaded")


def loaded(path: pathlib.Path, load: Callable[[pathlib.Path], _Loaded]) -> _Loaded:
    """Returns what a function loads from a file.

    Args:
        path: The path of the file.
        load: The function. For a damaged file, Keras and NumPy raise errors of many kinds, most of
            which do not name it.

    Raises:
        ValueError: If the function raises an error.
    """
    try:
        return load(path)
    except Exception as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from error
