import pytest

import dqmq_tf
from dqmq_tf import export, flatbuffer
from dqmq_tf.errors import FileFormatError
from dqmq_tf.flatbuffer import checksum


def test_a_file_names_its_version_target_profile_and_bits(every_bit_width):
    qmodel, path, _ = every_bit_width
    facts = export.read_metadata(path)
    assert facts["version"] == dqmq_tf.__version__
    assert facts["target"] == qmodel.target.name
    assert facts["profile"] == 0
    assert facts["bits"]["conv2"] == 2 and facts["bits"]["dense8"] == 8
    assert "weights" in facts["policy"]


def test_a_file_without_dqmq_tf_metadata_is_refused(small_file, tmp_path):
    model = flatbuffer.read(small_file[0].read_bytes())
    model.metadata = []
    path = tmp_path / "other.tflite"
    path.write_bytes(checksum.seal(flatbuffer.write(model)))
    with pytest.raises(FileFormatError, match="no dqmq_tf metadata"):
        export.read_metadata(path)
