import dataclasses
import itertools
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers.frozen_models import freeze, images

from dqmq_tf import export, flatbuffer, runtimes, targets
from dqmq_tf.errors import ConversionError, VerificationError
from dqmq_tf.flatbuffer import lookup_tables
from dqmq_tf.lowering.float_file import export_float
from dqmq_tf.runtimes import process
from dqmq_tf.runtimes.registry import installed_version

HERE = ["litert-xnnpack", "litert-builtin", "litert-reference", "tflite-micro"]
KEY = "serving_default"


@pytest.fixture(scope="module")
def contents(small_file):
    return small_file[0].read_bytes()


@pytest.fixture(scope="module")
def inputs(small):
    return [images(small, 20)]


def operators(model, name):
    return [o for o in model.subgraphs[0].operators if flatbuffer.operator_name(model, o) == name]


def two_signatures(contents):
    """Returns a file with a second signature, for a second subgraph that equals the first."""
    model = flatbuffer.read(contents)
    other = flatbuffer.read(contents)
    (graph,), (definition,) = other.subgraphs, other.signatureDefs
    definition.signatureKey, definition.subgraphIndex = b"other", 1
    model.subgraphs.append(graph)
    model.signatureDefs.append(definition)
    return flatbuffer.write(model)


@pytest.mark.parametrize("name", HERE)
def test_each_runtime_computes_what_the_model_does(name, small, contents, inputs):
    run = runtimes.run(contents, inputs, runtime=name)
    (found,) = run.outputs
    assert run.samples == 20 and found.dtype == np.float32
    np.testing.assert_allclose(found, small.predict(inputs[0], verbose=0), atol=3 / 256)
    assert 0 < run.latency_ms < 1000
    assert (run.arena_bytes is not None) == (name == "tflite-micro")


def test_int8_inputs_and_outputs_take_and_return_real_values(tmp_path, inputs, contents, small):
    path = tmp_path / "int8.tflite"
    export.convert(small, path, data=inputs[0], io_dtype="int8", verify=False)
    graph = flatbuffer.read(path.read_bytes()).subgraphs[0]
    assert flatbuffer.type_name(graph.tensors[graph.inputs[0]]) == "INT8"
    for name in ("litert-builtin", "tflite-micro"):
        (found,) = runtimes.run(path.read_bytes(), inputs, runtime=name).outputs
        (expected,) = runtimes.run(contents, inputs, runtime=name).outputs
        np.testing.assert_array_equal(found, expected)


def test_the_arena_is_the_smallest_in_which_tflite_micro_starts(contents, inputs):
    size = runtimes.run(contents, inputs, runtime="tflite-micro").arena_bytes
    program = (
        "import sys; from tflite_micro import runtime;"
        "runtime.Interpreter.from_bytes(sys.stdin.buffer.read(), arena_size=int(sys.argv[1]))"
    )
    for arena, fits in ((size, True), (size - 16, False)):
        done = subprocess.run(
            [sys.executable, "-c", program, str(arena)], input=contents, capture_output=True
        )
        assert (done.returncode == 0) == fits


@pytest.mark.parametrize("name", ["litert-builtin", "litert-xnnpack", "tflite-micro"])
def test_tensors_can_be_read(name, contents, inputs):
    model = flatbuffer.read(contents)
    index = int(operators(model, "CONV_2D")[0].outputs[0])
    tensors = runtimes.run(contents, inputs, runtime=name, tensors=[index]).tensors
    reference = runtimes.run(contents, inputs, runtime="litert-reference", tensors=[index]).tensors
    assert tensors[index].dtype == np.int8 and np.ptp(tensors[index].astype(int)) > 50
    assert np.abs(tensors[index].astype(int) - reference[index]).max() <= 1


def test_a_later_subgraph_runs_by_its_signature(contents, inputs):
    both = two_signatures(contents)
    first = runtimes.run(both, inputs, signature=KEY).outputs
    other = runtimes.run(both, inputs, signature="other").outputs
    np.testing.assert_array_equal(first[0], other[0])
    with pytest.raises(VerificationError, match="tflite-micro runs the first subgraph only"):
        runtimes.run(both, inputs, runtime="tflite-micro", signature="other")


def test_inputs_and_outputs_are_in_the_order_of_the_signature(tmp_path):
    keras.utils.set_random_seed(3)
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    dense = [keras.layers.Dense(3, name=f"dense{i}") for i in range(2)]
    qmodel = freeze(keras.Model([a, b], [dense[0](a), dense[1](b)]))
    x = images(qmodel, 8)
    path = tmp_path / "two.tflite"
    export.convert(qmodel, path, data=x)
    model = flatbuffer.read(path.read_bytes())
    # The first subgraph has them in the opposite order.
    graph, (definition,) = model.subgraphs[0], model.signatureDefs
    for end in ("inputs", "outputs"):
        indices = [entry.tensorIndex for entry in getattr(definition, end)]
        setattr(graph, end, np.array(indices[::-1], np.int32))
    turned = flatbuffer.write(model)
    for name in HERE:
        run = runtimes.run(turned, x, runtime=name, signature=KEY)
        for found, expected in zip(run.outputs, qmodel.predict(x, verbose=0)):
            np.testing.assert_allclose(found, expected, atol=0.05)
        swapped = runtimes.run(turned, x[::-1], runtime=name).outputs
        np.testing.assert_array_equal(swapped[::-1], run.outputs)


def test_no_input_is_started_after_the_time_limit(contents, inputs):
    run = runtimes.run(contents, inputs, seconds=0)
    assert run.samples == 1 and len(run.outputs[0]) == 1


def test_a_runtime_that_hangs_is_stopped(contents, inputs, monkeypatch):
    monkeypatch.setattr(process, "_PATIENCE_SECONDS", 0.01)
    with pytest.raises(VerificationError, match="did not finish within 0 seconds and was stopped"):
        runtimes.run(contents, inputs, seconds=0)


def test_a_crash_is_an_error_that_names_the_runtime(contents, inputs):
    # The mean writes to the input of the convolution, and LiteRT aborts.
    model = flatbuffer.read(contents)
    (conv,), (mean,) = operators(model, "CONV_2D"), operators(model, "MEAN")
    mean.outputs = conv.inputs[:1].copy()
    with pytest.raises(VerificationError, match="litert-builtin .*crashed on the file: SIG"):
        runtimes.run(flatbuffer.write(model), inputs, runtime="litert-builtin")
    # The convolution reads the softmax, which has other dimensions: TFLite Micro divides by zero.
    model = flatbuffer.read(contents)
    (conv,), (softmax,) = operators(model, "CONV_2D"), operators(model, "SOFTMAX")
    conv.inputs = np.array([softmax.outputs[0], *conv.inputs[1:]], np.int32)
    with pytest.raises(VerificationError, match="tflite-micro .*crashed on the file: SIG"):
        runtimes.run(flatbuffer.write(model), inputs, runtime="tflite-micro")


def test_a_refusal_contains_the_message_of_the_runtime(contents, inputs):
    model = flatbuffer.read(contents)
    for code in model.operatorCodes:
        code.version = 99
    with pytest.raises(VerificationError, match="litert-xnnpack .*refuses.*version '99'"):
        runtimes.run(flatbuffer.write(model), inputs)
    with pytest.raises(VerificationError, match="refuses.*Cannot set tensor: Dimension mismatch"):
        runtimes.run(contents, [inputs[0][:, :4]])


def test_arrays_that_are_not_one_for_each_input_are_refused(contents, inputs):
    for arrays in ([*inputs, *inputs], inputs[0], []):
        with pytest.raises(ValueError, match=f"takes 1 input, but there are {len(arrays)} arrays"):
            runtimes.run(contents, arrays)
    with pytest.raises(ValueError, match="There are no inputs"):
        runtimes.run(contents, [inputs[0][:0]])


def test_contents_that_are_not_a_tflite_file_are_refused(inputs):
    with pytest.raises(ConversionError, match="Not a TFLite file"):
        runtimes.run(b"something else entirely", inputs)


def test_unknown_runtimes_and_signatures_are_refused_with_those_that_exist(contents, inputs):
    with pytest.raises(ValueError, match="Unknown runtime 'litert'.*litert-xnnpack"):
        runtimes.run(contents, inputs, runtime="litert")
    with pytest.raises(ValueError, match="no signature 'x'; it has 'serving_default'"):
        runtimes.run(contents, inputs, signature="x")


def test_litert_reference_refuses_int4_depthwise_convolutions_only(every_bit_width, tmp_path):
    qmodel, path, _ = every_bit_width
    reference, data = runtimes.get("litert-reference"), lookup_tables.decompress(path.read_bytes())
    reason = reference.refuses(flatbuffer.read(data))
    x = [images(qmodel, 2)]
    if qmodel.target.name in ("android", "ethos_u"):
        assert reason is None
        runtimes.run(data, x, runtime=reference.name)
        return
    assert "INT4 depthwise" in reason
    with pytest.raises(VerificationError, match="DEPTHWISE_CONV_2D"):
        runtimes.run(data, x, runtime=reference.name)
    litert = ("litert-xnnpack", "litert-builtin")
    assert all(runtimes.get(name).refuses(flatbuffer.read(data)) is None for name in litert)


def test_only_tflite_micro_accepts_lookup_tables(every_bit_width):
    qmodel, path, _ = every_bit_width
    model = flatbuffer.read(path.read_bytes())
    tables = qmodel.target.name == "microcontroller"
    assert ("TFLM_DECODE" in (runtimes.get("litert-builtin").refuses(model) or "")) == tables
    assert runtimes.get("tflite-micro").refuses(model) is None


# Each becomes one operator of a float file, among others that every runtime has.
FUNCTIONS = {
    "CEIL": keras.ops.ceil,
    "ELU": keras.ops.elu,
    "EXP": keras.ops.exp,
    "GELU": lambda x: keras.ops.gelu(x, approximate=False),
    "LEAKY_RELU": keras.ops.leaky_relu,
    "ONE_HOT": lambda x: keras.ops.one_hot(keras.ops.cast(x, "int32"), 4),
    "POW": lambda x: keras.ops.power(x, x),
    "REDUCE_PROD": lambda x: keras.ops.prod(x, axis=1),
    "ROUND": keras.ops.round,
    "SIGN": keras.ops.sign,
    "TILE": lambda x: keras.ops.tile(x, (1, 2)),
    "TOPK_V2": lambda x: keras.ops.top_k(x, 2)[0],
}


@pytest.fixture(scope="module", params=FUNCTIONS)
def float_file(request):
    """Name of an operator, and a file that has it."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, FUNCTIONS[request.param](inputs))
    contents = export_float(model).contents
    found = flatbuffer.read(contents)
    assert [o for o in operators(found, request.param)]
    return request.param, contents


@pytest.mark.parametrize("name", HERE)
def test_a_runtime_refuses_exactly_the_operators_that_it_lacks(name, float_file):
    operator, contents = float_file
    x = [np.array([[0.5, 1.0, 2.0, 3.0]], "float32")]
    reason = runtimes.get(name).refuses(flatbuffer.read(contents))
    if operator in runtimes.get(name).lacks:
        assert reason == f"it has no kernel for {operator}"
        with pytest.raises(VerificationError, match=f"{name} .*refuses.*(?s:.*){operator}"):
            runtimes.run(contents, x, runtime=name)
    else:
        assert reason is None
        assert runtimes.run(contents, x, runtime=name).samples == 1


def test_litert_refuses_operators_that_only_tflite_micro_has(contents):
    model = flatbuffer.read(contents)
    model.operatorCodes[0].customCode = b"TFLM_DECODE"
    assert "TFLM_DECODE" in runtimes.get("litert-builtin").refuses(model)
    assert runtimes.get("tflite-micro").refuses(model) is None


class TestOtherEnvironment:
    """`tflite-runtime`, which needs an older NumPy than this package."""

    def test_without_the_variable_the_error_names_it(self, contents, inputs, monkeypatch):
        monkeypatch.delenv(runtimes.PYTHON_VARIABLE, raising=False)
        with pytest.raises(ImportError, match=f"not installed: set {runtimes.PYTHON_VARIABLE}"):
            runtimes.run(contents, inputs, runtime="tflite-runtime")

    @pytest.mark.parametrize("python, answer", [(sys.executable, "No module"), ("/no", "No such")])
    def test_a_variable_that_names_a_wrong_python_is_explained(self, monkeypatch, python, answer):
        monkeypatch.setenv(runtimes.PYTHON_VARIABLE, python)
        assert answer in runtimes.get("tflite-runtime").missing()

    def test_computes_what_the_model_does(self, tflite_runtime, small, contents, inputs):
        run = runtimes.run(contents, inputs, runtime=tflite_runtime.name)
        expected = small.predict(inputs[0], verbose=0)
        np.testing.assert_allclose(run.outputs[0], expected, atol=3 / 256)
        assert tflite_runtime.version == "tflite-runtime 2.14.0"

    def test_runs_a_later_subgraph(self, tflite_runtime, contents, inputs):
        found = [
            runtimes.run(two_signatures(contents), inputs, runtime=tflite_runtime.name, signature=s)
            for s in (KEY, "other")
        ]
        np.testing.assert_array_equal(found[0].outputs[0], found[1].outputs[0])

    @pytest.mark.parametrize("every_bit_width", ["android"], indirect=True)
    def test_verifies_every_kind_of_layer_at_every_bit_width(self, tflite_runtime, every_bit_width):
        qmodel, path, converted = every_bit_width
        held = {(row.operator, row.bit_width) for row in converted.weights}
        operators = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
        assert held >= set(itertools.product(operators, range(2, 9)))
        report = export.verify(qmodel, path, images(qmodel, 50), runtimes=[tflite_runtime.name])
        row = report.row(tflite_runtime.name)
        assert row.ran and row.samples == 50
        assert report.different_numbers == 0
        assert row.top1_agreement >= 0.96 and row.mean_quanta < 1


def test_installed_runtimes_say_their_version():
    for name in HERE:
        assert runtimes.get(name).missing() is None
        assert any(c.isdigit() for c in runtimes.get(name).version)


@pytest.mark.parametrize("layer", [keras.layers.GRU(3), keras.layers.Embedding(9, 4)])
def test_weights_with_several_scales_of_which_tflite_micro_uses_one_are_refused(layer, tmp_path):
    words = isinstance(layer, keras.layers.Embedding)
    inputs = keras.Input((4,), dtype="int32") if words else keras.Input((4, 3))
    x = keras.layers.Flatten()(layer(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    data = np.zeros((8, 4), "int32") if words else images(model)
    micro = targets.get("microcontroller")
    own = dataclasses.replace(micro, name="own", per_tensor=frozenset())
    qmodel = freeze(model, target=own, data=data)
    message = (
        f"'{layer.name}.*floating point.*tflite-micro.*'own', silently uses the first of several"
    )
    with pytest.raises(ConversionError, match=message):
        export.convert(qmodel, tmp_path / "model.tflite", data=data)
    assert not list(tmp_path.iterdir())
    export.convert(freeze(model, target=micro, data=data), tmp_path / "model.tflite", data=data)


def test_the_version_of_a_package_that_is_installed_under_another_name(tmp_path, monkeypatch):
    assert installed_version("keras") == keras.__version__
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "some_engine.py").write_text('__version__ = "2.21.0"')
    (tmp_path / "other_engine.py").write_text("")
    assert installed_version("some-engine") == "2.21.0"
    assert installed_version("other-engine") == "unknown"
