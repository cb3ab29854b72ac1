"""`checked_path`: whether a file can be written where a user wants it."""

import os
import pathlib
import tempfile


def checked_path(path: str | os.PathLike[str], suffix: str) -> pathlib.Path:
    """Checks that a file can be written, before the work for it starts, and returns its path.

    Args:
        path: The path of the file.
        suffix: How its name has to end, such as `".tflite"`.

    Raises:
        ValueError: If the path is no path, or has another suffix.
        OSError: If the path is a folder, or if its folder does not exist or cannot be written.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"path={path!r} must be the name of a file that ends in {suffix!r}.")
    path = pathlib.Path(path)
    if path.suffix != suffix:
        raise ValueError(f"path={str(path)!r} must end in {suffix!r}.")
    if path.is_dir():
        raise IsADirectoryError(f"path={str(path)!r} is a folder. Give the name of a file in it.")
    # Where the path is a symbolic link, the file that it points to is written.
    parent = pathlib.Path(os.path.realpath(path)).parent
    if not parent.is_dir():
        raise FileNotFoundError(f"The folder {str(parent)!r} of path={str(path)!r} does not exist.")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise PermissionError(f"The folder {str(parent)!r} cannot be written: {error}.") from error
    return path
