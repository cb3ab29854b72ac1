import numpy as np
import pytest

from dqmq_tf import flatbuffer
from dqmq_tf.errors import FileFormatError
from dqmq_tf.flatbuffer import checksum


def unsealed(small_file):
    """Contents of a file without its seal: the flatbuffer alone."""
    return small_file[0].read_bytes().partition(checksum.MAGIC)[0]


def test_writing_a_parsed_file_gives_the_same_bytes(small_file):
    data = unsealed(small_file)
    assert flatbuffer.write(flatbuffer.read(data)) == data


def test_buffers_are_aligned_to_16_bytes(small_file):
    data = small_file[0].read_bytes()
    model = flatbuffer.schema().Model.GetRootAsModel(data, 0)
    for i in range(model.BuffersLength()):
        contents = model.Buffers(i).DataAsNumpy()
        if isinstance(contents, np.ndarray):
            start = contents.__array_interface__["data"][0]
            base = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
            assert (start - base) % 16 == 0


def test_buffers_behind_the_flatbuffer_are_loaded(small_file):
    data = unsealed(small_file)
    model = flatbuffer.read(data)
    buffer = max(model.buffers, key=lambda b: 0 if b.data is None else len(b.data))
    contents, buffer.data, buffer.offset = buffer.data.tobytes(), None, 2
    buffer.size = len(contents)
    buffer.offset = len(flatbuffer.write(model))
    outside = flatbuffer.write(model) + contents
    assert flatbuffer.write(flatbuffer.read(outside)) == data
    with pytest.raises(FileFormatError, match="truncated or corrupt"):
        flatbuffer.read(outside[:-1])


def test_files_of_other_formats_are_refused():
    with pytest.raises(FileFormatError, match="Not a TFLite file"):
        flatbuffer.read(b"something else entirely")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_file_is_refused(small_file, share):
    data = unsealed(small_file)
    with pytest.raises(FileFormatError, match="truncated or corrupt"):
        flatbuffer.read(data[: int(len(data) * share)])
