"""The checksum detects damage to a file before a parser or a runtime reads it."""

import numpy as np
import pytest
from helpers.frozen_models import images
from helpers.new_process import in_new_process

import dqmq_tf
from dqmq_tf import export
from dqmq_tf.errors import FileFormatError
from dqmq_tf.flatbuffer import TFLiteFile

_MUTATIONS = 200
# Each damaged file goes to each function that reads files. The test fails if one accepts it, hangs,
# or crashes.
_CHILD = """
import pathlib, sys
import keras
import dqmq_tf
from dqmq_tf.errors import FileFormatError
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
qmodel = dqmq_tf.quantize_model(model, target="simulation")
readers = [dqmq_tf.read_metadata, dqmq_tf.AdaptiveInterpreter,
           lambda path: dqmq_tf.verify(qmodel, path, None)]
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    for read in readers:
        try:
            read(path)
        except (FileFormatError, dqmq_tf.VerificationError) as error:
            assert path.name in str(error) and "corrupt" in str(error) or "truncated" in str(error)
        else:
            sys.exit(f"{path.name} was accepted")
print("all refused")
"""


def test_every_damaged_file_is_refused_without_a_crash(small_file, tmp_path):
    contents, random = small_file[0].read_bytes(), np.random.default_rng(0)
    for number in range(_MUTATIONS):
        damaged = bytearray(contents)
        if number % 2:
            damaged[random.integers(len(contents))] ^= 1 << random.integers(8)
        else:
            damaged = damaged[: random.integers(len(contents))]
        (tmp_path / f"{number:03d}.tflite").write_bytes(damaged)
    assert "all refused" in in_new_process(_CHILD, tmp_path, timeout=300)


def test_undamaged_files_are_accepted(small, small_file):
    assert TFLiteFile.load(small_file[0]).contents == small_file[0].read_bytes()
    assert export.verify(small, small_file[0], images(small, 4)).different_numbers == 0


def test_files_that_dqmq_tf_did_not_write_are_refused(tmp_path):
    path = tmp_path / "other.tflite"
    path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(100))
    with pytest.raises(FileFormatError, match="dqmq_tf.convert did not write it"):
        dqmq_tf.read_metadata(path)
    with pytest.raises(FileNotFoundError):
        dqmq_tf.read_metadata(tmp_path / "none.tflite")
