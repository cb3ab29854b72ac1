"""`Exposure`: gives each image the black point and the gain that suit its brightness and contrast."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from dqmq_tf.graph.composites import SplitLayer

# The mean and the spread of usual images, as parts of the range from black to white.
_LEVEL, _SPREAD = 0.4, 0.15
# The lowest and the highest knot of the curves, as multiples of the usual spread. Between them lie
# nearly all photographs. Neighbors have a fixed ratio, as the gain is close to a power of the spread.
_LOWEST, _HIGHEST = 1 / 12, 3.0
# Mean and spread are measured in an image of at least this size.
_MEASURED_SIZE = 32
# How far images may reach beyond black and white, as a part of the range: resizing overshoots.
_OVERSHOOT = 0.1
_PARTS = (
    "gray", "mean", "center", "difference", "excess", "deviation", "curve", "reach", "gain",
    "black", "lifted", "exposed", "clipped",
)  # fmt: skip


@keras.saving.register_keras_serializable(package="dqmq_tf")
class Exposure(SplitLayer):
    """Adapts each image to its own brightness and contrast, by strengths that training learns.

    `y = (x - black) * gain(spread)`, with `black = m * mean - reach(spread)`, clipped to the range

    The mean and the spread are those of the gray image in blocks of a few pixels. The spread is the
    mean absolute deviation, `2 * mean(relu(gray - mean))`: an 8-bit tensor holds it for dark images
    too, in contrast to a variance. Gain and reach are piecewise linear functions of the spread,
    whose values at fixed knots are learned, as is `m`. They begin with `m = strength`,
    `gain = (usual spread / spread) ** strength` and `reach = strength * level / gain`. So an image of
    usual mean and spread passes unchanged, as a trained network expects. A layer that changes
    nothing (`strength=0`) and one that standardizes each image (`strength=1`) are among what training
    can arrive at. `Exposure(level=128, spread=51)` starts close to `64 * (x - mean) / deviation + 128`
    with the standard deviation, which is 1.25 mean absolute deviations of a normal distribution. With
    more knots the start is closer. The reach is in the units of the image: at usual learning rates
    training moves the gain and `m`, and hardly the reach of images from 0 to 255.

    All parts are layers with integer kernels on every target: convolutions, two means, and
    differences and a product with one number for each image. `quantize_model` splits the layer into
    them and trains them at 8 bits, so that a file computes exactly what was trained. Only the
    first convolution, a difference and a product run over the whole image.

    Contrast normalization of each image by learned strengths follows batch-instance normalization
    (Nam and Kim 2018, arXiv 1805.07925), here with a mean absolute deviation and applied to the image.

    Args:
        strength: How far the layer equalizes images at the start, from 0 (not at all) to 1 (all
            images get the same mean and nearly the same contrast).
        value_range: The values of black and white. If black is 0, outputs are clipped to the range.
        level: The mean of a usual image. None for 0.4 of the range. `adapt` measures it.
        spread: The spread of a usual image. None for 0.15 of the range. `adapt` measures it.
        knots: The number of knots of the curves.

    Input shape: images `[batch, height, width, channels]` in floating point. Output shape: the same.

    Raises:
        ValueError: If an argument is out of range, or if the input is no image.

    Example:

    >>> exposure = dqmq_tf.layers.Exposure()
    >>> exposure.adapt(images)
    >>> inputs = keras.Input((32, 32, 3))
    >>> model = keras.Model(inputs, trained_model(exposure(inputs)))
    >>> model.compile("adam", "sparse_categorical_crossentropy")
    >>> model.fit(images, labels)
    >>> qmodel = dqmq_tf.quantize_model(model)
    """

    # The parts that say what becomes of each image.
    STEERING = ("black", "gain")

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
        if not -np.inf < low < high < np.inf:
            raise ValueError(
                f"Exposure got value_range={value_range}: give finite numbers, black below white."
            )
        if knots < 2 or knots != int(knots):
            raise ValueError(f"Exposure got knots={knots}: give a whole number, at least 2.")
        if level is not None and not np.isfinite(level):
            raise ValueError(f"Exposure got level={level}: give a finite number.")
        if spread is not None and not 0 < spread < np.inf:
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
        height, width, channels = input_shape[1:]
        size = min(height or 1, width or 1)
        block = max(1, size // _MEASURED_SIZE)
        layers = keras.layers
        self.gray = self._convolution("gray", 1, block, use_bias=False)
        self.mean = self._average("mean")
        self.center = self._convolution("center", 1, use_bias=False)
        self.difference = layers.Subtract(name="difference", dtype=self.dtype_policy)
        self.excess = layers.ReLU(name="excess", dtype=self.dtype_policy)
        self.deviation = self._average("deviation")
        self.curve = self._convolution("curve", self.knots, activation="relu")
        self.reach = self._convolution("reach", 1)
        self.gain = self._convolution("gain", 1)
        self.black = layers.Subtract(name="black", dtype=self.dtype_policy)
        self.lifted = layers.Subtract(name="lifted", dtype=self.dtype_policy)
        self.exposed = layers.Multiply(name="exposed", dtype=self.dtype_policy)
        low, high = self.value_range
        self.clipped = layers.ReLU(high, name="clipped", dtype=self.dtype_policy)
        if low:
            self.clipped = layers.Identity(name="clipped", dtype=self.dtype_policy)
        for layer, filters in (
            (self.gray, channels),
            (self.center, 1),
            (self.curve, 1),
            (self.reach, self.knots),
            (self.gain, self.knots),
        ):
            layer.build((None, block, block, filters))
        self._start()
        # The parts are new. They train if the layer does. (Assigning the same value to the property
        # does nothing: TensorFlow skips it.)
        for part in self.parts().values():
            part.trainable = self.trainable
        self._fix_measurement()

    def _convolution(
        self, name: str, filters: int, size: int = 1, **options: Any
    ) -> keras.layers.Conv2D:
        return keras.layers.Conv2D(
            filters,
            size,
            strides=size,
            name=name,
            dtype=self.dtype_policy,
            data_format="channels_last",
            **options,
        )

    def _average(self, name: str) -> keras.layers.GlobalAveragePooling2D:
        return keras.layers.GlobalAveragePooling2D(
            keepdims=True, name=name, dtype=self.dtype_policy, data_format="channels_last"
        )

    def _start(self) -> None:
        """Sets the weights to those of `strength`, `level` and `spread`."""
        weights = self.gray.kernel
        weights.assign(np.full(weights.shape, 1 / np.prod(weights.shape)))
        self.center.kernel.assign(np.full((1, 1, 1, 1), self.strength))
        ratio = (_HIGHEST / _LOWEST) ** (1 / (self.knots - 1))
        # One knot is at the usual spread, so that the curves are exact there.
        usual = round(-np.log(_LOWEST) / np.log(ratio))
        positions = self.spread * ratio ** (np.arange(self.knots) - usual)
        # What comes in is half of the spread.
        self.curve.kernel.assign((-2 / positions)[None, None, None])
        self.curve.bias.assign(np.ones(self.knots))
        gains = (self.spread / positions) ** self.strength
        for layer, values in ((self.gain, gains), (self.reach, self.strength * self.level / gains)):
            constant, heights = _curve(positions, values)
            layer.kernel.assign(heights[None, None, :, None])
            layer.bias.assign([constant])

    @property
    def trainable(self) -> bool:
        """Whether the layer learns. What is measured stays fixed in any case."""
        return super().trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Layer.trainable.fset(self, value)
        if hasattr(self, "clipped"):
            self._fix_measurement()

    def _fix_measurement(self) -> None:
        """Keeps training from what is measured: an optimizer's steps do not suit knots and heights."""
        self.gray.trainable = self.curve.trainable = False

    def adapt(self, images: Any, batch_size: int = 256) -> None:
        """Measures the usual mean and spread of images, and starts from them.

        Args:
            images: An array `[N, height, width, channels]`, or a `tf.data.Dataset` of batches of
                images or of `(images, labels)`.
            batch_size: How many images of an array are read at once.

        Raises:
            ValueError: If there is no image, if images have another number of axes or values far
                outside `value_range`, or if all images are constant.
        """
        means, spreads = [], []
        for batch in _batches(images, batch_size):
            if batch.ndim != 4:
                raise ValueError(
                    f"Exposure {self.name!r} adapts to images [N, height, width, channels]. Found the "
                    f"shape {batch.shape}. Add the missing axis, such as images[..., None] for gray "
                    "images, or put a dataset into batches."
                )
            self._check_range(batch)
            gray = batch.mean(axis=-1)
            block = max(1, min(gray.shape[1:]) // _MEASURED_SIZE)
            height, width = (size // block for size in gray.shape[1:])
            gray = gray[:, : height * block, : width * block]
            gray = gray.reshape(-1, height, block, width, block).mean(axis=(2, 4))
            mean = gray.mean(axis=(1, 2), keepdims=True)
            means.append(mean.ravel())
            spreads.append(2 * np.maximum(gray - mean, 0).mean(axis=(1, 2)))
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

    def _check_range(self, images: np.ndarray) -> None:
        """Refuses images that black and white do not suit."""
        low, high = self.value_range
        margin = _OVERSHOOT * (high - low)
        if np.isnan(images).any():
            raise ValueError(
                f"Exposure {self.name!r} cannot adapt to images with NaN. Leave them out."
            )
        if images.size and (images.min() < low - margin or images.max() > high + margin):
            raise ValueError(
                f"Exposure {self.name!r} has value_range=({low:g}, {high:g}), the values of black and "
                f"white, but adapts to images from {images.min():.3g} to {images.max():.3g}. Give it "
                "their range."
            )

    def call(self, x: Any) -> Any:
        dtype = keras.backend.standardize_dtype(x.dtype)
        if not dtype.startswith(("float", "bfloat")):
            raise ValueError(
                f"Exposure {self.name!r} takes floating-point images. Found {dtype}. Convert them "
                "before it, such as with keras.layers.Rescaling(1.0)."
            )
        return self.compute(self.parts(), x)

    def parts(self) -> dict[str, keras.layers.Layer]:
        return {name: getattr(self, name) for name in _PARTS}

    @staticmethod
    def compute(parts: Mapping[str, Any], x: Any) -> Any:
        gray = parts["gray"](x)
        mean = parts["mean"](gray)
        deviation = parts["deviation"](parts["excess"](parts["difference"]([gray, mean])))
        near_knots = parts["curve"](deviation)
        black = parts["black"]([parts["center"](mean), parts["reach"](near_knots)])
        lifted = parts["lifted"]([x, black])
        return parts["clipped"](parts["exposed"]([lifted, parts["gain"](near_knots)]))

    @staticmethod
    def prefixes(paths: Collection[str]) -> list[str]:
        """Returns the beginning of the paths of the parts of each layer that was split.

        Args:
            paths: The paths of all layers of a model.
        """
        last = f"_{_PARTS[-1]}"
        candidates = [path[: -len(last) + 1] for path in sorted(paths) if path.endswith(last)]
        return [start for start in candidates if all(start + part in paths for part in _PARTS)]

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        names = ("strength", "value_range", "level", "spread", "knots")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _curve(positions: np.ndarray, values: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns `(constant, heights)` of `constant + sum(heights * relu(1 - x / positions))`.

    The curve is piecewise linear between the knots and constant outside: noise in images without
    contrast is not amplified without bounds.

    Args:
        positions: The positions of the knots, ascending, shape `[knots]`.
        values: The values of the curve there, shape `[knots]`.
    """
    slopes = np.concatenate([[0.0], np.diff(values) / np.diff(positions), [0.0]])
    return float(values[-1]), np.diff(slopes) * positions


def _batches(images: Any, batch_size: int) -> Iterable[np.ndarray]:
    """Yields images in batches, as float64."""
    starts = range(0, len(images), batch_size) if hasattr(images, "shape") else ()
    for batch in [images[i : i + batch_size] for i in starts] or images:
        inputs = batch[0] if isinstance(batch, (list, tuple)) else batch
        yield np.asarray(ops.convert_to_numpy(inputs), np.float64)
