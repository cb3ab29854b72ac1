"""TFLite's standard metadata, which ML Kit, the Task Library and MediaPipe read.

The entry `TFLITE_METADATA` of a file holds a flatbuffer of its own. Its schema is
`metadata_schema.fbs` of TensorFlow Lite Support, version 1.0.0; no package that dqmq_tf needs has it.
Label files are appended to the `.tflite` file as a zip archive.
"""

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np

from dqmq_tf.flatbuffer import checksum, serialization
from dqmq_tf.flatbuffer.serialization import ModelT

NAME = "TFLITE_METADATA"
LABEL_FILE = "labels.txt"
_IDENTIFIER = b"M001"
_OLDEST_PARSER = "1.0.0"
_TENSOR_AXIS_LABELS = 2  # AssociatedFileType
# ColorSpaceType. The schema has no BGR. A reader that knows only RGB refuses an unknown order.
_COLORS = {"RGB": 1, "GRAY": 2}
_IMAGE_PROPERTIES = 2  # in the union ContentProperties
_NORMALIZATION_OPTIONS = 1  # in the union ProcessUnitOptions
# Year, month, day, hour, minute and second in the archive: equal files have equal bytes.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)

# Writes one field of a table into its slot.
_Field = Callable[[flatbuffers.Builder], None]


def build(model: ModelT, facts: Mapping[str, Any]) -> bytes:
    """Returns the standard metadata of a file.

    Args:
        model: The file, whose first subgraph readers run.
        facts: The facts of the file, with `"inputs"`, `"labels"` or both; see
            `metadata.with_input_facts`.

    Returns:
        The contents of the entry `TFLITE_METADATA`.
    """
    graph, definition = model.subgraphs[0], model.signatureDefs[0]
    names = {
        int(entry.tensorIndex): serialization.text(entry.name)
        for entry in (*definition.inputs, *definition.outputs)
    }
    builder = flatbuffers.Builder(1024)
    inputs, stated = [], facts.get("inputs", {})
    for index in graph.inputs:
        name = names[int(index)]
        size = tuple(int(n) for n in graph.tensors[index].shape[1:3])
        inputs.append(_input(builder, name, stated.get(name), size))
    outputs = []
    for number, index in enumerate(graph.outputs):
        has_labels = number == 0 and "labels" in facts
        outputs.append(_output(builder, names[int(index)], has_labels))
    subgraph = _table(
        builder,
        5,
        [
            _offset(2, _vector(builder, inputs)),
            _offset(3, _vector(builder, outputs)),
        ],
    )
    root = _table(
        builder,
        8,
        [
            _offset(0, builder.CreateString("dqmq_tf")),
            _offset(3, _vector(builder, [subgraph])),
            _offset(7, builder.CreateString(_OLDEST_PARSER)),
        ],
    )
    builder.Finish(root, file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def append_labels(contents: bytes, labels: Sequence[str]) -> bytes:
    """Appends the label file that `build` names.

    The archive announces a comment of the length of dqmq_tf's checksum, so that a sealed file is a
    complete zip archive.

    Args:
        contents: The contents of a `.tflite` file, without a checksum.
        labels: The names of the classes.

    Returns:
        The contents with a zip archive behind them.
    """
    buffer = io.BytesIO(contents)
    with zipfile.ZipFile(buffer, "a") as archive:
        # Readers map the file into memory, so it must not be compressed.
        archive.writestr(zipfile.ZipInfo(LABEL_FILE, _ZIP_TIME), "\n".join(labels))
    return buffer.getvalue()[:-2] + checksum.LENGTH.to_bytes(2, "little")


def _input(
    builder: flatbuffers.Builder,
    name: str,
    entry: Mapping[str, Any] | None,
    size: Sequence[int],
) -> int:
    """Writes the TensorMetadata of an input, with the properties of an image if there is an entry."""
    if entry is None:
        return _table(builder, 7, [_offset(0, builder.CreateString(name))])
    height, width = size
    default_size = _table(builder, 2, [_number(0, width), _number(1, height)])
    color = _COLORS.get(entry.get("color", ""), 0)
    image = _table(builder, 2, [_byte(0, color), _offset(1, default_size)])
    content = _table(builder, 3, [_byte(0, _IMAGE_PROPERTIES), _offset(1, image)])
    numbers = [builder.CreateNumpyVector(np.float32(entry[key])) for key in ("mean", "std")]
    options = _table(builder, 2, [_offset(n, vector) for n, vector in enumerate(numbers)])
    unit = _table(builder, 2, [_byte(0, _NORMALIZATION_OPTIONS), _offset(1, options)])
    units = _vector(builder, [unit])
    return _table(
        builder,
        7,
        [_offset(0, builder.CreateString(name)), _offset(3, content), _offset(4, units)],
    )


def _output(builder: flatbuffers.Builder, name: str, has_labels: bool) -> int:
    """Writes the TensorMetadata of an output, which names the label file if there is one."""
    fields = [_offset(0, builder.CreateString(name))]
    if has_labels:
        file = _table(
            builder,
            5,
            [_offset(0, builder.CreateString(LABEL_FILE)), _byte(2, _TENSOR_AXIS_LABELS)],
        )
        fields.append(_offset(6, _vector(builder, [file])))
    return _table(builder, 7, fields)


def _table(builder: flatbuffers.Builder, slots: int, fields: Sequence[_Field]) -> int:
    builder.StartObject(slots)
    for write in fields:
        write(builder)
    return int(builder.EndObject())


def _vector(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _offset(slot: int, value: int) -> _Field:
    return lambda builder: builder.PrependUOffsetTRelativeSlot(slot, value, 0)


def _number(slot: int, value: int) -> _Field:
    return lambda builder: builder.PrependUint32Slot(slot, value, 0)


def _byte(slot: int, value: int) -> _Field:
    return lambda builder: builder.PrependUint8Slot(slot, value, 0)
