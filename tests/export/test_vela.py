import pytest

from dqmq_tf import export
from dqmq_tf.export import compression, flatbuffer, vela
from dqmq_tf.export.errors import ConversionError

from .conftest import freeze, images, small_model

needs_vela = pytest.mark.skipif(
    vela.program() is None, reason="ethos-u-vela is not installed (pip install ethos-u-vela)"
)


@pytest.fixture(scope="module")
def int8_file(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("vela") / "small.tflite"
    export.convert(small, path, io="int8", data=images(small), verify=False)
    return path.read_bytes()


def test_int4_is_refused(tmp_path):
    qmodel = freeze(small_model(), {"conv": 4}, target="android_small")
    path = tmp_path / "model.tflite"
    export.convert(qmodel, path, verify=False)
    with pytest.raises(ConversionError, match="'w0' is INT4, which kills Vela.*'ethos_u'"):
        vela.compile_file(path.read_bytes())


def test_lookup_tables_are_refused(int8_file):
    coded = compression.compress(int8_file, {"w0": 6})
    with pytest.raises(ConversionError, match="TFLite Micro's own.*'ethos_u'"):
        vela.compile_file(coded)


def test_several_networks_are_refused(int8_file):
    model = flatbuffer.read(int8_file)
    model.subgraphs.append(model.subgraphs[0])
    with pytest.raises(ConversionError, match="2 subgraphs"):
        vela.compile_file(flatbuffer.write(model))


def test_a_missing_vela_is_named(int8_file, monkeypatch):
    monkeypatch.setattr(vela, "program", lambda: None)
    with pytest.raises(ImportError, match="pip install ethos-u-vela"):
        vela.compile_file(int8_file)


@needs_vela
def test_fewer_bits_take_fewer_bytes(every_bit_width):
    qmodel, path, report = every_bit_width
    if qmodel.target.name != "ethos_u":
        assert report.vela is None
        return
    found = report.vela
    assert found.cpu_operators == 0
    assert found.npu_operators > 20
    assert 0 < found.weight_bytes < found.flash_bytes < found.total_bytes
    # Mean 5 bits of 8, and what Vela's own format adds to small tensors.
    assert found.weight_bytes < sum(w.count for w in report.weights)


@needs_vela
def test_a_file_that_vela_refuses(int8_file):
    with pytest.raises(ConversionError, match="Vela ended with"):
        vela.compile_file(int8_file, accelerator="ethos-u99")
