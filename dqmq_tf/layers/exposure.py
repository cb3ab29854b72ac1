"""`Exposure`: gives each image a gain and an offset that suit its own mean and contrast."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from dqmq_tf.graph.composites import SplitLayer

# The mean and the spread of usual images, as parts of the range from black to white.
_LEVEL, _SPREAD = 0.4, 0.15
# The knots of the gain, as multiples of the usual spread, from the lowest to the highest contrast
# of images in practice. Neighbors have a fixed ratio, as the gain is close to a power of the spread.
_LOWEST, _HIGHEST = 1 / 12, 3.0


@keras.saving.register_keras_serializable(package="dqmq_tf")
class Exposure(SplitLayer):
    """Adapts each image to its own brightness and contrast, by strengths that training learns.

    `y = (x - <m, mean(x)>) * gain(spread) + offset(spread)`

    The spread is `2 * mean(relu(x - <m, mean(x)>))`. For `m = 1` it is the mean absolute deviation.
    An 8-bit tensor holds it for dark images too, in contrast to a variance. The gain is a piecewise
    linear function of the spread. At the start it follows `(usual spread / spread) ** strength`, so
    that an image of usual spread has a gain of 1. Training learns the values of the gain and of the
    offset at fixed knots, and the weight `m` of each channel in the mean. A layer that changes
    nothing (`strength=0`) and one that standardizes each image (`strength=1`) are among what it can
    become.

    All parts are layers with integer kernels on every target (means, convolutions of one position, a
    subtraction, a product, a sum). `quantize_model` splits the layer into them and trains them at 8
    bits, so that a file computes exactly what was trained. The method is that of learned instance
    normalization (Ulyanov et al. 2016, arXiv 1607.08022; Nam and Kim 2018, "Batch-instance
    normalization", arXiv 1805.07925) with a mean absolute deviation, applied to the image.

    Args:
        strength: How far the layer equalizes images at the start, from 0 (not at all) to 1 (all
            images get the same mean and nearly the same contrast).
        value_range: The values of black and white.
        level: The mean of a usual image, which the outputs keep. None for 0.4 of the range, or for
            what `adapt` measures.
        spread: The spread of a usual image. None for 0.15 of the range, or for what `adapt` measures.
        knots: The number of knots of the gain.

    Input shape: images `[batch, height, width, channels]` in floating point. Output shape: the same.

    Raises:
        ValueError: If an argument is out of range, or if the input has another rank or holds
            integers.

    Example:

    >>> exposure = dqmq_tf.layers.Exposure()
    >>> exposure.adapt(images)
    >>> model = keras.Sequential([keras.Input((32, 32, 3)), exposure, trained_model])
    >>> model.compile("adam", "sparse_categorical_crossentropy")
    >>> model.fit(images, labels)
    >>> qmodel = dqmq_tf.quantize_model(model)
    """

    def __init__(
        self,
        strength: float = 1.0,
        value_range: tuple[float, float] = (0.0, 255.0),
        level: float | None = None,
        spread: float | None = None,
        knots: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        low, high = map(float, value_range)
        if not 0 <= strength <= 1:
            raise ValueError(f"Exposure got strength={strength}: give a number from 0 to 1.")
        if not low < high:
            raise ValueError(f"Exposure got value_range={value_range}: give black below white.")
        if knots < 2:
            raise ValueError(f"Exposure got knots={knots}: give at least 2.")
        if spread is not None and not spread > 0:
            raise ValueError(f"Exposure got spread={spread}: give a positive number.")
        self.strength, self.value_range, self.knots = float(strength), (low, high), int(knots)
        self.level = low + _LEVEL * (high - low) if level is None else float(level)
        self.spread = _SPREAD * (high - low) if spread is None else float(spread)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if len(input_shape) != 4 or input_shape[-1] is None:
            raise ValueError(
                f"Exposure {self.name!r} takes images [batch, height, width, channels]. Found the "
                f"shape {tuple(input_shape)}. Add the missing axes with keras.layers.Reshape."
            )
        channels = input_shape[-1]
        layers = keras.layers
        self.mean = layers.GlobalAveragePooling2D(
            keepdims=True, name="mean", dtype=self.dtype_policy
        )
        self.center = self._convolution("center", 1, use_bias=False)
        self.difference = layers.Subtract(name="difference", dtype=self.dtype_policy)
        self.excess = layers.ReLU(name="excess", dtype=self.dtype_policy)
        self.deviation = layers.GlobalAveragePooling2D(
            keepdims=True, name="deviation", dtype=self.dtype_policy
        )
        self.curve = self._convolution("curve", self.knots, activation="relu")
        # The knots are fixed: an optimizer's steps do not suit both them and the heights.
        self.curve.trainable = False
        self.gain = self._convolution("gain", 1)
        self.offset = self._convolution("offset", 1)
        self.scaled = layers.Multiply(name="scaled", dtype=self.dtype_policy)
        self.exposed = layers.Add(name="exposed", dtype=self.dtype_policy)
        for layer in (self.center, self.curve):
            layer.build((None, 1, 1, channels))
        for layer in (self.gain, self.offset):
            layer.build((None, 1, 1, self.knots))
        self._start()

    def _convolution(self, name: str, filters: int, **options: Any) -> keras.layers.Conv2D:
        return keras.layers.Conv2D(filters, 1, name=name, dtype=self.dtype_policy, **options)

    def _start(self) -> None:
        """Sets the weights to those of `strength`, `level` and `spread`."""
        channels = self.center.kernel.shape[2]
        self.center.kernel.assign(np.full((1, 1, channels, 1), self.strength / channels))
        positions = self.spread * np.geomspace(_LOWEST, _HIGHEST, self.knots)
        # Half of the spread of each channel comes in.
        slopes = np.tile(-2 / (channels * positions), (channels, 1))
        self.curve.kernel.assign(slopes[None, None])
        self.curve.bias.assign(np.ones(self.knots))
        constant, heights = _gain_curve(positions, self.spread, self.strength)
        self.gain.kernel.assign(heights[None, None, :, None])
        self.gain.bias.assign([constant])
        self.offset.kernel.assign(np.zeros((1, 1, self.knots, 1)))
        self.offset.bias.assign([self.strength * self.level])

    def adapt(self, images: Any, batch_size: int = 256) -> None:
        """Measures the usual mean and spread of images, and starts from them.

        Args:
            images: An array `[N, height, width, channels]`, or a `tf.data.Dataset` of batches of
                images or of `(images, labels)`.
            batch_size: How many images of an array are read at once.

        Raises:
            ValueError: If there is no image, or if all images are constant.
        """
        means, spreads = [], []
        for batch in _batches(images, batch_size):
            mean = batch.mean(axis=(1, 2, 3), keepdims=True)
            means.append(mean.ravel())
            spreads.append(2 * np.maximum(batch - mean, 0).mean(axis=(1, 2, 3)))
        spread = np.concatenate(spreads or [[]])
        if not np.any(spread > 0):
            raise ValueError(
                f"Exposure {self.name!r} cannot adapt to {len(spread)} images without contrast. "
                "Give it images of the training data."
            )
        self.level = float(np.concatenate(means).mean())
        self.spread = float(np.median(spread[spread > 0]))
        if self.built:
            self._start()

    def call(self, x: Any) -> Any:
        return self.compute(self.parts(), x)

    def parts(self) -> dict[str, keras.layers.Layer]:
        names = ("mean", "center", "difference", "excess", "deviation", "curve", "gain", "offset")
        return {name: getattr(self, name) for name in (*names, "scaled", "exposed")}

    @staticmethod
    def compute(parts: Mapping[str, Any], x: Any) -> Any:
        difference = parts["difference"]([x, parts["center"](parts["mean"](x))])
        near_knots = parts["curve"](parts["deviation"](parts["excess"](difference)))
        scaled = parts["scaled"]([difference, parts["gain"](near_knots)])
        return parts["exposed"]([scaled, parts["offset"](near_knots)])

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        names = ("strength", "value_range", "level", "spread", "knots")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _gain_curve(positions: np.ndarray, spread: float, strength: float) -> tuple[float, np.ndarray]:
    """Returns `(constant, heights)` of `constant + sum(heights * relu(1 - x / positions))`.

    Between the lowest and the highest knot the curve follows `(spread / x) ** strength`. Outside,
    it is constant: noise in images without contrast is not amplified without bounds.

    Args:
        positions: The positions of the knots, ascending, shape `[knots]`.
        spread: The spread at which the gain is 1.
        strength: The exponent.
    """
    gains = (spread / positions) ** strength
    slopes = np.append(0.0, np.diff(gains) / np.diff(positions))
    # Each knot changes the slope: from 0 below the lowest one to 0 above the highest one.
    changes = np.append(slopes[1:], 0.0) - slopes
    return float(gains[-1]), changes * positions


def _batches(images: Any, batch_size: int) -> Iterable[np.ndarray]:
    """Yields images in batches, as float64."""
    starts = range(0, len(images), batch_size) if hasattr(images, "shape") else ()
    for batch in [images[i : i + batch_size] for i in starts] or images:
        inputs = batch[0] if isinstance(batch, (list, tuple)) else batch
        yield np.asarray(ops.convert_to_numpy(inputs), np.float64)
