"""`TFLiteFile`: a `.tflite` file as bytes and as objects, which converts between them once."""

import copy
import os
from typing import Any, Self

from dqmq_tf.errors import FileFormatError
from dqmq_tf.flatbuffer import checksum, metadata, serialization
from dqmq_tf.flatbuffer.serialization import ModelT, SignatureDefT


class TFLiteFile:
    """A `.tflite` file whose bytes are parsed, and whose objects are serialized, on first use.

    The steps of a conversion hand it on, so that none of them parses what another one has just
    written.

    Args:
        contents: Contents of a `.tflite` file.

    Example:

    >>> file = TFLiteFile(path.read_bytes())
    >>> file.model.subgraphs[0].name = b"main"
    >>> file.edited()
    >>> path.write_bytes(file.contents)
    """

    def __init__(self, contents: bytes) -> None:
        self._contents: bytes | None = contents
        self._model: ModelT | None = None
        self._metadata: dict[str, Any] | None = None

    @classmethod
    def from_model(cls, model: ModelT) -> Self:
        """Returns the file that holds a model.

        Args:
            model: A `ModelT`.
        """
        file = cls(b"")
        file._contents, file._model = None, model
        return file

    @classmethod
    def of(cls, file: "bytes | TFLiteFile") -> "TFLiteFile":
        """Returns a file as a `TFLiteFile`.

        Args:
            file: Contents of a `.tflite` file, or a `TFLiteFile`, which is returned as it is.
        """
        return file if isinstance(file, TFLiteFile) else cls(file)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads and parses a file that dqmq_tf wrote.

        Args:
            path: Path of a `.tflite` file.

        Raises:
            FileNotFoundError: If there is no such file.
            FileFormatError: If it is truncated or corrupt, or dqmq_tf did not write it.
        """
        file = cls(checksum.load(path))
        try:
            file._model = serialization.read(file.contents)
        except FileFormatError as error:
            raise FileFormatError(f"{path}: {error}") from error
        return file

    @property
    def contents(self) -> bytes:
        """The bytes of the file."""
        if self._contents is None:
            self._contents = serialization.write(self._model)
        return self._contents

    @property
    def model(self) -> ModelT:
        """The file as the schema's `ModelT`. Call `edited` after changing it.

        Raises:
            FileFormatError: If the bytes are not a complete TFLite file.
        """
        if self._model is None:
            self._model = serialization.read(self.contents)
        return self._model

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The facts that dqmq_tf wrote into the file, None where there are none.

        Raises:
            FileFormatError: If they cannot be read.
        """
        if self._metadata is None:
            self._metadata = metadata.facts_of(self.model)
        return self._metadata

    @property
    def signatures(self) -> dict[str, SignatureDefT]:
        """The signatures by name, in the order of the file."""
        definitions = self.model.signatureDefs or ()
        return {serialization.text(d.signatureKey): d for d in definitions}

    @property
    def signature(self) -> SignatureDefT:
        """The first signature.

        Raises:
            FileFormatError: If the file has none.
        """
        if not self.model.signatureDefs:
            raise FileFormatError("The file has no signature.")
        return self.model.signatureDefs[0]

    def edited(self) -> None:
        """Marks that `model` was changed: the contents are serialized anew when they are read."""
        if self._model is not None:
            self._contents = self._metadata = None

    def copy(self) -> Self:
        """Returns a copy whose model can be edited without changing this file."""
        return type(self).from_model(copy.deepcopy(self.model))

    def sealed(self) -> Self:
        """Returns this file with dqmq_tf's checksum behind its contents."""
        file = type(self)(checksum.seal(self.contents))
        file._model, file._metadata = self._model, self._metadata
        return file


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what a converted file says about itself.

    Args:
        path: Path of a `.tflite` file that `dqmq_tf.convert` wrote.

    Returns:
        Dict with `"version"`, `"target"`, `"profile"`, `"bits"` (`{layer: bit-width}`),
        `"float"` and `"policy"`. An adaptive file has `"routing"`, and lists `"profile"`, `"bits"`
        and `"float"` of each profile under `"profiles"`. If the file says how to feed it, `"inputs"`
        has a dictionary per image input, with `"mean"`, `"std"`, `"color"` and `"resize"` (see
        `dqmq_tf.Preprocessing`), and `"labels"` has the names of the classes.

    Raises:
        FileNotFoundError: If there is no such file.
        FileFormatError: If the file is truncated or corrupt, or dqmq_tf did not write it.

    Example:

    >>> dqmq_tf.read_metadata("model.tflite")["bits"]["conv2d"]
    8
    """
    facts = TFLiteFile.load(path).metadata
    if facts is None:
        raise FileFormatError(
            f"{path} holds no dqmq_tf metadata: dqmq_tf.convert did not write it."
        )
    return facts
