import pytest

from dqmq_tf.errors import FileFormatError
from dqmq_tf.flatbuffer import TFLiteFile, checksum, serialization


@pytest.fixture
def contents(small_file):
    """Contents of a file without its checksum."""
    return small_file[0].read_bytes().partition(checksum.MAGIC)[0]


def test_bytes_are_parsed_once_and_objects_serialized_once(contents, monkeypatch):
    calls = []
    for name in ("read", "write"):
        function = getattr(serialization, name)
        monkeypatch.setattr(
            serialization, name, lambda x, f=function, n=name: calls.append(n) or f(x)
        )
    file = TFLiteFile(contents)
    assert file.model is file.model and file.contents is contents
    assert file.metadata["target"] == "android" and file.metadata is file.metadata
    assert calls == ["read"]
    copy = file.copy()
    assert copy.contents == contents and copy.contents is copy.contents
    assert calls == ["read", "write"]


def test_an_edited_file_is_serialized_anew(contents):
    file = TFLiteFile(contents)
    file.model.metadata = []
    assert file.contents is contents and file.metadata is None
    file.edited()
    assert file.contents != contents
    assert TFLiteFile(file.contents).metadata is None


def test_marking_a_file_that_was_not_parsed_as_edited_keeps_its_contents(contents):
    file = TFLiteFile(contents)
    file.edited()
    assert file.contents is contents


def test_a_copy_can_be_edited_without_changing_the_file(contents):
    file = TFLiteFile(contents)
    copy = file.copy()
    copy.model.subgraphs[0].tensors[0].name = b"other"
    copy.edited()
    assert file.model.subgraphs[0].tensors[0].name != b"other"
    assert file.contents is contents and copy.contents != contents


def test_a_sealed_file_passes_the_check_of_load(contents, tmp_path):
    file = TFLiteFile(contents)
    path = tmp_path / "model.tflite"
    path.write_bytes(file.sealed().contents)
    assert TFLiteFile.load(path).contents == checksum.seal(contents)
    path.write_bytes(contents)
    with pytest.raises(FileFormatError, match="dqmq_tf.convert did not write it"):
        TFLiteFile.load(path)


def test_signatures_go_by_name(contents):
    file = TFLiteFile(contents)
    assert list(file.signatures) == ["serving_default"]
    assert file.signature is file.signatures["serving_default"]
    file.model.signatureDefs = []
    with pytest.raises(FileFormatError, match="no signature"):
        _ = file.signature


def test_bytes_and_files_are_taken_alike(contents):
    file = TFLiteFile(contents)
    assert TFLiteFile.of(file) is file
    assert TFLiteFile.of(contents).contents is contents
