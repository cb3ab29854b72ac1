"""Conversions of words of the command line, which refuse what a command could not use."""

import argparse
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

# `quality.KINDS`, which needs TensorFlow. A test compares the two.
KINDS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "speckle_noise",
    "gaussian_blur",
    "defocus_blur",
    "motion_blur",
    "low_resolution",
    "pixelate",
    "jpeg",
    "low_light",
    "brightness",
    "contrast",
    "fog",
)
_DATASET_NAME = re.compile(r"[A-Za-z]\w*([/:][\w.+-]+)*")


class ImageSource(NamedTuple):
    """Where `quantize` finds its images.

    Attributes:
        name: The path of a folder, or the name of a dataset of tensorflow-datasets.
        is_folder: Which of the two it is.
    """

    name: str
    is_folder: bool


def existing_file(text: str) -> pathlib.Path:
    """Returns the path of a file that exists."""
    path = pathlib.Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return path


def array_file(text: str) -> pathlib.Path:
    """Returns the path of an existing `.npy` or `.npz` file."""
    if pathlib.Path(text).suffix not in (".npy", ".npz"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .npy or .npz")
    return existing_file(text)


def tflite_path(text: str) -> pathlib.Path:
    """Returns the path of a `.tflite` file to write."""
    return _path_to_write(text, ".tflite")


def keras_path(text: str) -> pathlib.Path:
    """Returns the path of a `.keras` file to write."""
    return _path_to_write(text, ".keras")


def json_path(text: str) -> str:
    """Returns `"-"`, or the path of a file to write."""
    if text != "-":
        _check_can_be_written(pathlib.Path(text))
    return text


def image_source(text: str) -> ImageSource:
    """Returns a folder that exists, or what can be the name of a dataset."""
    path = pathlib.Path(text).expanduser()
    if path.is_dir():
        return ImageSource(str(path), True)
    if _DATASET_NAME.fullmatch(text):
        return ImageSource(text, False)
    raise argparse.ArgumentTypeError(f"there is no folder {text!r}")


def names_from(choices: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Returns a parser of comma-separated names."""

    def names(text: str) -> tuple[str, ...]:
        values = tuple(value.strip() for value in text.split(",") if value.strip())
        unknown = [value for value in values if value not in choices]
        if unknown or not values:
            raise argparse.ArgumentTypeError(
                f"{(unknown or [text])[0]!r} is none of {', '.join(choices)}"
            )
        return values

    return names


def integer_from(least: int) -> Callable[[str], int]:
    """Returns a parser of integers of at least `least`."""

    def integer(text: str) -> int:
        value = _integer(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not {least} or more")
        return value

    return integer


def positive_number(text: str) -> float:
    """Returns a finite number above 0."""
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def number_between(least: float, most: float) -> Callable[[str], float]:
    """Returns a parser of numbers within inclusive bounds."""

    def number(text: str) -> float:
        value = _number(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not from {least:g} to {most:g}")
        return value

    return number


def two_numbers(text: str) -> tuple[float, float]:
    """Returns two comma-separated numbers."""
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers, such as 0,255")
    return _number(parts[0]), _number(parts[1])


def numbers(text: str) -> tuple[float, ...]:
    """Returns one number, or several with commas between them."""
    return tuple(map(_number, text.split(",")))


def severity_range(text: str) -> tuple[int, int]:
    """Returns a range of severities from one severity, or from two with a comma between them."""
    parts = text.split(",")
    low, high = _integer(parts[0]), _integer(parts[-1])
    if len(parts) > 2 or not 1 <= low <= high <= 5:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range from 1 to 5, such as 2,4")
    return low, high


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def _path_to_write(text: str, suffix: str) -> pathlib.Path:
    path = pathlib.Path(text)
    if path.suffix != suffix:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {suffix}")
    _check_can_be_written(path)
    return path


def _check_can_be_written(path: pathlib.Path) -> None:
    """Refuses a path that cannot be written: minutes of work would be lost at the end."""
    folder = path.parent
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(folder)!r}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{str(path)!r} is a folder")
    if path.exists() and not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"the file {str(path)!r} cannot be written")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"the folder {str(folder)!r} cannot be written: {error}"
        ) from error
