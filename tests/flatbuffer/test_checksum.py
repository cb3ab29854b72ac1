"""Damage to a file is told apart from a bad file, before a parser or a runtime sees it."""

import numpy as np
import pytest
from helpers.frozen_models import images
from helpers.new_process import in_new_process

import dqmq_tf
from dqmq_tf import export
from dqmq_tf.errors import FileFormatError
from dqmq_tf.flatbuffer import TFLiteFile

_MUTATIONS = 200
# Every damaged file goes through each door; one that passes, hangs or ends Python fails the test.
_CHILD = """
import pathlib, sys
import dqmq_tf
from dqmq_tf.errors import FileFormatError
doors = [dqmq_tf.read_metadata, dqmq_tf.AdaptiveInterpreter,
         lambda path: dqmq_tf.verify(None, path, None)]
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    for door in doors:
        try:
            door(path)
        except (FileFormatError, dqmq_tf.VerificationError) as error:
            assert path.name in str(error) and "corrupt" in str(error) or "truncated" in str(error)
        else:
            sys.exit(f"{path.name} passed")
print("all refused")
"""


def test_every_mutation_is_refused_and_python_survives(small_file, tmp_path):
    contents, random = small_file[0].read_bytes(), np.random.default_rng(0)
    for number in range(_MUTATIONS):
        damaged = bytearray(contents)
        if number % 2:
            damaged[random.integers(len(contents))] ^= 1 << random.integers(8)
        else:
            damaged = damaged[: random.integers(len(contents))]
        (tmp_path / f"{number:03d}.tflite").write_bytes(damaged)
    assert "all refused" in in_new_process(_CHILD, tmp_path, timeout=300)


def test_whole_files_pass(small, small_file):
    assert TFLiteFile.load(small_file[0]).contents == small_file[0].read_bytes()
    assert export.verify(small, small_file[0], images(small, 4)).different_numbers == 0


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "other.tflite"
    path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(100))
    with pytest.raises(FileFormatError, match="dqmq_tf.convert did not write it"):
        dqmq_tf.read_metadata(path)
    with pytest.raises(FileNotFoundError):
        dqmq_tf.read_metadata(tmp_path / "none.tflite")
