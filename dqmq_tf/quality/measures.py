"""Measures of the quality of an image that need no reference: brightness, contrast, sharpness."""

from typing import Any

import numpy as np

_NEIGHBORS = ((0, 1), (2, 1), (1, 0), (1, 2))


def is_measurable(shape: tuple[int, ...]) -> bool:
    """Whether an array of a shape is a batch of gray or color images of at least 3 x 3 pixels."""
    return len(shape) == 4 and shape[-1] in (1, 3, 4) and min(shape[1:3]) >= 3


def measure(images: Any) -> dict[str, np.ndarray]:
    """Measures the brightness, contrast and sharpness of images.

    Each measure is taken from the gray image, which is the mean over the channels:

    - `"brightness"`: its mean.
    - `"contrast"`: its standard deviation.
    - `"sharpness"`: the standard deviation of its Laplacian. It is low for blurred images, and for
      those of low contrast. Noise raises it. (Pech-Pacheco et al. 2000, "Diatom autofocusing in
      brightfield microscopy", use the variance.)

    The units are those of the images. So compare only images of the same value range and size.

    Args:
        images: Images `[N, height, width, channels]` with 1, 3 or 4 channels, of which the fourth is
            the opacity and has no effect, in any value range.

    Returns:
        `{name: values}` with arrays `[N]` in float32.

    Raises:
        ValueError: If the images have another shape, or fewer than 3 x 3 pixels.

    Example:

    >>> dark = quality.measure(images)["brightness"] < 40
    >>> qmodel.evaluate(images[dark], labels[dark])
    """
    images = np.asarray(images)
    if not is_measurable(images.shape):
        raise ValueError(
            f"quality.measure got images of shape {images.shape}. Give it images [N, height, width, "
            "channels] of at least 3 x 3 pixels with 1, 3 or 4 channels."
        )
    gray = images[..., :3].mean(axis=-1, dtype="float32")
    height, width = gray.shape[1:]
    laplacian = -4 * gray[:, 1:-1, 1:-1]
    for y, x in _NEIGHBORS:
        laplacian = laplacian + gray[:, y : y + height - 2, x : x + width - 2]
    return {
        "brightness": gray.mean(axis=(1, 2)),
        "contrast": gray.std(axis=(1, 2)),
        "sharpness": laplacian.std(axis=(1, 2)),
    }
