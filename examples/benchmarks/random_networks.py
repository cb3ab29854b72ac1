"""Builds small random models from a seed: the inputs, layers and outputs that users combine.

A model has 1 to 3 inputs (feature vectors, signals, images, or word numbers) with or without
preprocessing layers, random layers of one and two dimensions, nested and shared models, layers that
change nothing at inference, and 1 to 3 outputs in a random order and structure.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

SAMPLES = 16
_WORDS = 11
_FUSED = ("linear", "relu", "relu6")
_ACTIVATIONS = (
    "relu", "relu6", "tanh", "sigmoid", "silu", "gelu", "elu", "hard_silu", "leaky_relu", "softmax",
    "softplus", "selu",
)  # fmt: skip
_LARGEST = 512


def build(seed: int) -> tuple[keras.Model, Any]:
    """Returns a random model and `SAMPLES` inputs for it, in the structure that the model takes.

    Args:
        seed: Decides everything. Equal seeds give equal models.
    """
    keras.utils.set_random_seed(seed)
    return _Network(seed).build()


class _Network:
    """The generator of one model."""

    def __init__(self, seed: int) -> None:
        self.choices = random.Random(seed)
        self.values = np.random.default_rng(seed)
        self.called: list[tuple[Any, tuple[int, ...]]] = []

    def build(self) -> tuple[keras.Model, Any]:
        count = self.choices.choice((1, 1, 2, 3))
        names = self.choices.sample(["zebra", "ape", "lion", "fox", "bear"], count)
        entries = [self._input(name) for name in names]
        inputs, arrays = [entry[0] for entry in entries], [entry[1] for entry in entries]
        tensors = [self._blocks(entry[2], self._number(1, 3)) for entry in entries]
        tensors += [
            self._blocks(self.choices.choice(tensors), 1) for _ in range(self._number(0, 1))
        ]
        outputs = self._outputs(tensors)
        # The order of the outputs and of the inputs is not that of their names or their making.
        structure = self.choices.choice(
            ("single", "list", "dict") if count == 1 else ("list", "dict")
        )
        if structure == "single":
            model, data = keras.Model(inputs[0], outputs), arrays[0]
        elif structure == "list":
            model, data = keras.Model(inputs, outputs), arrays
        else:
            model = keras.Model(dict(zip(names, inputs)), outputs)
            data = dict(zip(names, arrays))
        self._shake(model)
        return model, data

    def _number(self, low: int, high: int) -> int:
        return self.choices.randint(low, high)

    def _is(self, probability: float) -> bool:
        return self.choices.random() < probability

    # Inputs.

    def _input(self, name: str) -> tuple[Any, np.ndarray, Any]:
        """Returns an input, values for it, and the tensor behind its preprocessing layers."""
        kind = self.choices.choice(("vector", "signal", "image", "image", "signal", "words"))
        if kind == "words":
            shape: tuple[int, ...] = (self._number(3, 7),)
            x = keras.Input(shape, dtype="int32", name=name)
            values = self.values.integers(0, _WORDS, (SAMPLES, *shape)).astype("int32")
            return x, values, layers.Embedding(_WORDS, self._number(2, 6))(x)
        if kind == "vector":
            shape = (self._number(2, 9),)
        elif kind == "signal":
            shape = (self._number(5, 13), self._number(1, 5))
        else:
            shape = (self._number(5, 11), self._number(5, 11), self.choices.choice((1, 3, 3, 4)))
        if kind == "image" and self._is(0.6):
            values = self.values.uniform(0, 255, (SAMPLES, *shape))
            dtype = "uint8" if self._is(0.25) else "float32"
            x = keras.Input(shape, dtype=dtype, name=name)
            values = np.rint(values).astype(dtype)
            return x, values, self._preprocessed(x, values.astype("float32"))
        values = self.values.normal(
            self.values.normal(), 1 + self.values.uniform(), (SAMPLES, *shape)
        )
        values = values.astype("float32")
        x = keras.Input(shape, name=name)
        return x, values, self._normalized(x, values) if self._is(0.4) else x

    def _preprocessed(self, x: Any, values: np.ndarray) -> Any:
        if self._is(0.3):
            layer = self._augmentation((0, 255))
            # Keras cannot train this layer on uint8 images.
            is_contrast = isinstance(layer, layers.RandomContrast)
            x = layer(ops.cast(x, "float32") if is_contrast and x.dtype == "uint8" else x)
        if self._is(0.5):
            return layers.Rescaling(*self.choices.choice(((1 / 255, 0.0), (1 / 127.5, -1.0))))(x)
        return self._normalized(x, values)

    def _normalized(self, x: Any, values: np.ndarray) -> Any:
        layer = layers.Normalization(axis=self.choices.choice((-1, -1, None)))
        layer.adapt(values)
        return layer(x)

    # Blocks.

    def _blocks(self, x: Any, count: int, depth: int = 0) -> Any:
        for _ in range(count):
            x = self._block(x, depth)
            if self._is(0.25):
                x = self._identity(x)(x)
        return x

    def _block(self, x: Any, depth: int) -> Any:
        shape = tuple(x.shape[1:])
        shared = [layer for layer, other in self.called if other == shape]
        if shared and depth == 0 and self._is(0.4):
            y = self.choices.choice(shared)(x)
        elif depth < 2 and self._is(0.2):
            y = self._nested(x, depth)
        elif self._is(0.15):
            y = self._residual(x)
        else:
            kinds = {1: self._vector, 2: self._signal, 3: self._image}
            y = self.choices.choice(kinds[len(shape)]())(x)
        return y if np.prod(y.shape[1:]) <= _LARGEST else self._smaller(y)

    def _smaller(self, x: Any) -> Any:
        """Returns a tensor of fewer values."""
        if len(x.shape) == 4:
            return layers.MaxPooling2D(2, padding="same")(x)
        return layers.Dense(8)(x) if len(x.shape) == 2 else layers.AveragePooling1D(3)(x)

    def _nested(self, x: Any, depth: int) -> Any:
        shape = tuple(x.shape[1:])
        inner = keras.Input(shape)
        model = keras.Model(inner, self._blocks(inner, self._number(1, 2), depth + 1))
        if depth == 0:
            self.called.append((model, shape))
        if model.output is inner:
            return x
        if self._is(0.3):
            model = keras.Sequential([model, self._identity(model.output)])
        return model(x)

    def _residual(self, x: Any) -> Any:
        y, channels = x, x.shape[-1]
        if len(x.shape) == 4:
            y = layers.Conv2D(channels, self._number(1, 3), padding="same")(y)
        elif len(x.shape) == 3:
            y = layers.Conv1D(channels, self._number(1, 4), padding="same")(y)
        else:
            y = layers.Dense(channels)(y)
        if self._is(0.5):
            y = layers.BatchNormalization()(y)
        kind = self.choices.choice((layers.Add, layers.Subtract, layers.Concatenate, "+", "*"))
        y = y + x if kind == "+" else y * ops.sigmoid(x) if kind == "*" else kind()([y, x])
        return layers.ReLU()(y) if self._is(0.5) else y

    def _keep(self, layer: Any) -> Callable[[Any], Any]:
        """Returns a function that calls a layer, and keeps it to be shared."""

        def call(x: Any) -> Any:
            self.called.append((layer, tuple(x.shape[1:])))
            return layer(x)

        return call

    def _activation(self) -> Any:
        return self.choices.choice(_FUSED if self._is(0.6) else _ACTIVATIONS)

    def _with_norm(self, layer: Any) -> Callable[[Any], Any]:
        """Returns a function that calls a layer, and sometimes a normalization and an activation."""
        norm, activation = self._is(0.5), self._is(0.5)
        identity = self._is(0.2)

        def call(x: Any) -> Any:
            x = self._keep(layer)(x)
            if identity:
                x = self._identity(x)(x)
            x = layers.BatchNormalization()(x) if norm else x
            return layers.ReLU(self.choices.choice((None, 6)))(x) if activation else x

        return call

    def _common(self) -> list[Callable[[Any], Any]]:
        """Blocks for tensors of any rank."""
        size = self._number(2, 8)
        axis = self.choices.choice((-1, 1))
        return [
            self._with_norm(layers.Dense(size, activation=self._activation())),
            layers.BatchNormalization(),
            layers.LayerNormalization(),
            layers.Activation(self._activation()),
            layers.PReLU() if self._is(0.5) else layers.LeakyReLU(0.2),
            lambda x: ops.concatenate([x, x * 0.5 + 0.25], axis=axis),
            lambda x: x[..., : max(1, x.shape[-1] // 2)],
            lambda x: (
                self.choices.choice(ops.split(x, [max(1, x.shape[-1] // 2)], axis=-1))
                if x.shape[-1] > 1
                else x - 0.5
            ),
        ]

    def _vector(self) -> list[Callable[[Any], Any]]:
        size = self._number(2, 9)
        return [
            *self._common(),
            self._with_norm(layers.Dense(size, activation=self._activation())),
            self._with_norm(layers.Dense(size, use_bias=False)),
            lambda x: layers.Reshape((x.shape[1], 1))(x),
            lambda x: layers.RepeatVector(3)(x),
        ]

    def _signal(self) -> list[Callable[[Any], Any]]:
        size, kernel = self._number(2, 6), self._number(1, 4)
        padding = self.choices.choice(("same", "causal"))
        options = {"activation": self._activation(), "padding": padding}
        stride = self.choices.choice((1, 2, 3))
        return [
            *self._common(),
            self._with_norm(layers.Conv1D(size, kernel, strides=stride, **options)),
            self._with_norm(layers.Conv1D(size, kernel, dilation_rate=2, **options)),
            self._with_norm(layers.SeparableConv1D(size, kernel, padding="same")),
            layers.DepthwiseConv1D(kernel, padding="same", strides=stride),
            layers.Conv1DTranspose(size, kernel, strides=stride, padding="same"),
            self._recurrent(),
            self._recurrent(),
            self._states,
            lambda x: layers.MultiHeadAttention(2, 3)(x, x),
            self._attention,
            layers.TimeDistributed(layers.Dense(size)),
            layers.MaxPooling1D(2, strides=stride, padding="same"),
            layers.AveragePooling1D(3, strides=stride, padding="same"),
            layers.ZeroPadding1D((1, 2)),
            layers.UpSampling1D(2),
            layers.Permute((2, 1)),
            self._pooling("1D"),
        ]

    def _image(self) -> list[Callable[[Any], Any]]:
        size, activation = self._number(2, 6), self._activation()
        kernel = (self._number(1, 4), self._number(1, 3))
        stride = self.choices.choice((1, 2, 3, (1, 2), (2, 1), (3, 2)))
        square = stride if isinstance(stride, int) else 2
        padding = "same" if self._is(0.7) else "valid"
        valid = {"padding": "same"} if padding == "same" else {}

        def pad(x: Any) -> Any:
            return x if valid or min(x.shape[1:3]) > 3 else layers.ZeroPadding2D(2)(x)

        def convolved(x: Any) -> Any:
            layer = layers.Conv2D(size, kernel, stride, activation=activation, **valid)
            return self._with_norm(layer)(pad(x))

        def grouped(x: Any) -> Any:
            groups = 2 if x.shape[-1] % 2 == 0 else x.shape[-1]
            return layers.Conv2D(2 * groups, 3, padding="same", groups=groups)(x)

        return [
            *self._common(),
            convolved,
            convolved,
            self._with_norm(layers.Conv2D(size, 3, padding="same", dilation_rate=2)),
            grouped,
            self._with_norm(
                layers.DepthwiseConv2D(3, square, "same", depth_multiplier=self._number(1, 2))
            ),
            self._with_norm(layers.SeparableConv2D(size, 3, square, "same", activation=activation)),
            self._with_norm(layers.Conv2DTranspose(size, 3, strides=square, padding="same")),
            lambda x: layers.MaxPooling2D(2, stride, **valid)(pad(x)),
            lambda x: layers.AveragePooling2D((2, 3), stride, **valid)(pad(x)),
            layers.ZeroPadding2D(((1, 0), (0, 2))),
            lambda x: layers.Cropping2D(((1, 0), (0, 1)))(x) if min(x.shape[1:3]) > 2 else x + 1.0,
            layers.UpSampling2D((2, 1)),
            layers.UpSampling2D(2, interpolation="bilinear"),
            layers.Resizing(7, 6),
            layers.PReLU(shared_axes=(1, 2)),
            layers.GroupNormalization(groups=1),
            self._gate,
            lambda x: layers.Reshape((-1, x.shape[-1]))(x),
            lambda x: ops.mean(x, axis=(1, 2)),
            self._pooling("2D"),
        ]

    def _pooling(self, dimensions: str) -> Callable[[Any], Any]:
        """Returns a layer that turns a signal or an image into a vector."""
        kind = self.choices.choice(
            (f"GlobalAveragePooling{dimensions}", f"GlobalMaxPooling{dimensions}", "Flatten")
        )
        return getattr(layers, kind)()

    def _recurrent(self) -> Any:
        kind = self.choices.choice((layers.LSTM, layers.GRU, layers.SimpleRNN))
        layer = kind(self._number(2, 5), return_sequences=self._is(0.5))
        return layers.Bidirectional(layer) if self._is(0.3) else layer

    def _states(self, x: Any) -> Any:
        """An output of a recurrent layer that returns its states, not all of which are read."""
        kind = self.choices.choice((layers.LSTM, layers.GRU))
        results = kind(4, return_sequences=self._is(0.5), return_state=True)(x)
        if self._is(0.4):
            return layers.Concatenate()(results[1:]) if len(results) > 2 else results[1]
        return self._one_of(results)

    def _one_of(self, results: Sequence[Any]) -> Any:
        """Returns one of several outputs of a layer."""
        return results[self._number(0, len(results) - 1)]

    def _attention(self, x: Any) -> Any:
        query = layers.Dense(4)(x)
        return layers.Attention(use_scale=self._is(0.5))([query, layers.Dense(4)(x)])

    def _gate(self, x: Any) -> Any:
        """A squeeze-and-excite block."""
        y = layers.GlobalAveragePooling2D(keepdims=True)(x)
        y = layers.Dense(3, activation="relu")(y)
        return layers.Multiply()([x, layers.Dense(x.shape[-1], activation="sigmoid")(y)])

    # Layers that change nothing at inference.

    def _identity(self, x: Any) -> Any:
        kinds: list[Callable[[], Any]] = [
            lambda: layers.Dropout(0.2),
            lambda: layers.GaussianDropout(0.1),
            lambda: layers.GaussianNoise(0.1),
            lambda: layers.AlphaDropout(0.1),
            lambda: layers.Activation("linear"),
            lambda: layers.Identity(),
            lambda: layers.ActivityRegularization(l2=1e-3),
        ]
        if len(x.shape) == 3:
            kinds.append(lambda: layers.SpatialDropout1D(0.2))
        if len(x.shape) == 4:
            kinds.append(lambda: layers.SpatialDropout2D(0.2))
            if x.shape[-1] in (1, 3):
                kinds += [lambda: self._augmentation((-1, 1))] * 3
        return self.choices.choice(kinds)()

    def _augmentation(self, value_range: tuple[int, int]) -> Any:
        return self.choices.choice(
            (
                lambda: layers.RandomFlip(),
                lambda: layers.RandomRotation(0.1),
                lambda: layers.RandomZoom(0.1),
                lambda: layers.RandomTranslation(0.1, 0.1),
                lambda: layers.RandomContrast(0.1, value_range=value_range),
                lambda: layers.RandomBrightness(0.1, value_range=value_range),
            )
        )()

    # Outputs.

    def _outputs(self, tensors: Sequence[Any]) -> Any:
        count = self.choices.choice((1, 1, 2, 2, 3))
        vectors = [self._vector_of(x) for x in tensors]
        joined = layers.Concatenate()(vectors) if len(vectors) > 1 else vectors[0]
        size, outputs = self._number(2, 4), []
        names = self.choices.sample(["scores", "boxes", "angle", "kind", "depth"], count)
        for name in names:
            activation = self._one_of(("linear", "sigmoid", "softmax", "relu", "tanh"))
            head = layers.Dense(size, activation=activation, name=name)
            place = self._number(0, 5)
            y = self.choices.choice(vectors) if place == 0 else joined
            y = head(y)
            if place == 1:
                y = self._identity(y)(y)
            elif place == 2:
                y = self.choices.choice(tensors)
            outputs.append(y)
        if count == 1:
            return self.choices.choice((outputs[0], outputs, {names[0]: outputs[0]}))
        return self.choices.choice((outputs, dict(zip(names, outputs))))

    def _vector_of(self, x: Any) -> Any:
        if len(x.shape) == 2:
            return x
        return self._pooling(f"{len(x.shape) - 2}D")(x)

    def _shake(self, model: keras.Model) -> None:
        """Gives biases and moving statistics values that change something."""
        for variable in model.weights:
            kind = variable.path.split("/")[-1]
            if kind in ("bias", "beta", "moving_mean"):
                variable.assign(self.values.uniform(-0.4, 0.4, variable.shape))
            elif kind in ("gamma", "moving_variance"):
                variable.assign(self.values.uniform(0.5, 1.5, variable.shape))
