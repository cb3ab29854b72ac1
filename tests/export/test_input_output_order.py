"""Inputs and outputs of a file are in the model's order and have its names, by index as well."""

import keras
import numpy as np
import pytest
from helpers.frozen_models import freeze, images

import dqmq_tf
from dqmq_tf import export, flatbuffer
from dqmq_tf.errors import VerificationError
from dqmq_tf.flatbuffer import TFLiteFile

layers = keras.layers
LITERT = ("android", "android_small")


def outputs_model(widths=(4, 4, 4), order=(1, 0, 2)):
    """Outputs named first, second and third, which the model returns in another order."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((8, 8, 3), name="x")
    hidden = layers.Conv2D(8, 3, strides=2, activation="relu", name="conv")(inputs)
    hidden = layers.GlobalAveragePooling2D(name="pool")(hidden)
    outputs = [
        layers.Dense(width, activation="sigmoid", name=name)(hidden)
        for width, name in zip(widths, ("first", "second", "third"))
    ]
    return keras.Model(inputs, [outputs[place] for place in order])


def inputs_model(structure=list):
    """A model whose two inputs have one shape and are not in alphabetical order."""
    keras.utils.set_random_seed(3)
    zebra, ape = keras.Input((5,), name="zebra"), keras.Input((5,), name="ape")
    parts = [layers.Dense(4, name="d1")(zebra), layers.Dense(4, name="d2")(ape)]
    head = layers.Dense(3, activation="softmax", name="probabilities")
    outputs = head(layers.Concatenate(name="joined")(parts))
    if structure is dict:
        return keras.Model({"zebra": zebra, "ape": ape}, outputs)
    return keras.Model([zebra, ape], outputs)


def by_index(path, target, inputs):
    """Returns the outputs of a file that is run by index, one sample at a time."""
    from ai_edge_litert.interpreter import Interpreter

    if target in LITERT:
        interpreter = Interpreter(str(path))
        interpreter.allocate_tensors()
        entering, leaving = interpreter.get_input_details(), interpreter.get_output_details()
        scales = [[e["quantization"] for e in ends] for ends in (entering, leaving)]
        dtypes = [e["dtype"] for e in entering]
    else:
        runtime = pytest.importorskip("tflite_micro").runtime
        interpreter = runtime.Interpreter.from_bytes(path.read_bytes())
        graph = flatbuffer.read(path.read_bytes()).subgraphs[0]
        scales = [
            [_scale_of(graph.tensors[index]) for index in ends]
            for ends in (graph.inputs, graph.outputs)
        ]
        dtypes = [np.int8] * len(inputs)
    rows = []
    for sample in range(len(inputs[0])):
        for place, array in enumerate(inputs):
            value, (scale, zero) = array[sample : sample + 1], scales[0][place]
            if scale:
                value = np.clip(np.rint(value / scale) + zero, -128, 127)
            value = value.astype(dtypes[place])
            if target in LITERT:
                interpreter.set_tensor(entering[place]["index"], value)
            else:
                interpreter.set_input(value, place)
        interpreter.invoke()
        row = []
        for place, (scale, zero) in enumerate(scales[1]):
            if target in LITERT:
                value = interpreter.get_tensor(leaving[place]["index"])
            else:
                value = interpreter.get_output(place)
            row.append((value.astype("float32") - zero) * scale if scale else value)
        rows.append(row)
    return [np.concatenate(parts) for parts in zip(*rows)]


def _scale_of(tensor):
    return float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])


def signature_names(path):
    (definition,) = TFLiteFile.load(path).model.signatureDefs
    return tuple(
        [flatbuffer.text(entry.name) for entry in entries]
        for entries in (definition.inputs, definition.outputs)
    )


def assert_close(found, expected):
    assert len(found) == len(expected)
    for f, e in zip(found, expected):
        np.testing.assert_allclose(f, e, atol=4 / 256)


@pytest.mark.parametrize(
    ("target", "widths", "order"),
    [
        ("android", (4, 4, 4), (1, 0, 2)),
        ("android", (4, 4, 4), (1, 0, 1)),
        ("microcontroller", (4, 3, 2), (2, 1, 0)),
        ("microcontroller", (4, 4, 4), (1, 0, 1)),
    ],
)
def test_outputs_by_index_are_in_the_models_order(target, widths, order, tmp_path):
    qmodel = freeze(outputs_model(widths, order), target=target)
    path, x = tmp_path / "model.tflite", images(qmodel, 16)
    export.convert(qmodel, path, data=x)
    assert_close(by_index(path, target, [x]), qmodel.predict(x, verbose=0))
    names = [("first", "second", "third")[place] for place in order]
    found = signature_names(path)[1]
    assert found[:2] == names[:2]
    assert len(set(found)) == 3


@pytest.mark.parametrize(("target", "structure"), [("android", list), ("microcontroller", dict)])
def test_inputs_by_index_are_in_the_models_order(target, structure, tmp_path):
    model = inputs_model(structure)
    names, arrays = [x.name for x in model.inputs], images(model, 64)
    data = arrays if structure is list else dict(zip(names, arrays))
    qmodel, path = freeze(model, target=target, data=data), tmp_path / "model.tflite"
    export.convert(qmodel, path, data=data)
    assert_close(by_index(path, target, arrays), [qmodel.predict(data, verbose=0)])
    assert signature_names(path) == (names, ["probabilities"])
    for given in (arrays, dict(reversed(list(zip(names, arrays))))):
        assert export.verify(qmodel, path, given).rows[0].ran


@pytest.mark.parametrize("structure", [list, dict])
def test_an_adaptive_file_of_several_inputs_routes_by_the_first(structure, tmp_path):
    model = inputs_model(structure)
    arrays = images(model, 64)
    data = arrays if structure is list else dict(zip([x.name for x in model.inputs], arrays))
    qmodel, path = freeze(model, profiles=2, data=data), tmp_path / "model.tflite"
    report = export.convert(qmodel, path, data=data, adaptive=2)
    assert report.adaptive.router_agreement > 0.9
    found = dqmq_tf.AdaptiveInterpreter(path)(arrays)
    assert np.mean(found.profile == qmodel.decisions(data).profile) > 0.9


@pytest.mark.parametrize("routing", ["signatures", "graph"])
def test_an_adaptive_file_has_the_models_order(routing, tmp_path):
    qmodel = freeze(outputs_model(), profiles=2)
    path, x = tmp_path / "model.tflite", images(qmodel, 256)
    export.convert(qmodel, path, data=x, adaptive=2, routing=routing)
    model = TFLiteFile.load(path).model
    for definition in model.signatureDefs:
        graph = model.subgraphs[definition.subgraphIndex]
        for entries, tensors in (
            (definition.inputs, graph.inputs),
            (definition.outputs, graph.outputs),
        ):
            assert [entry.tensorIndex for entry in entries] == list(tensors)
    if routing == "graph":
        *found, _ = by_index(path, "android", [x])
        assert_close(found, qmodel.predict(x, verbose=0))
    export.verify(qmodel, path, x)


def test_verify_refuses_outputs_that_are_exchanged_by_index(tmp_path):
    qmodel = freeze(outputs_model())
    path, x = tmp_path / "model.tflite", images(qmodel, 16)
    export.convert(qmodel, path, data=x)
    file = TFLiteFile.load(path)
    file.model.subgraphs[0].outputs = file.model.subgraphs[0].outputs[[1, 0, 2]]
    file.edited()
    path.write_bytes(file.sealed().contents)
    with pytest.raises(VerificationError, match="outputs of signature 'serving_default'.*order"):
        export.verify(qmodel, path, x)


def test_keys_that_are_no_names_are_not_used(tmp_path):
    model = outputs_model()
    qmodel = freeze(keras.Model(model.inputs, dict(enumerate(model.outputs))))
    export.convert(qmodel, tmp_path / "model.tflite", data=images(qmodel))


def test_outputs_of_a_dictionary_have_its_keys(tmp_path):
    model = outputs_model()
    by_key = dict(zip(("zoo", "bar", "foo"), model.outputs))
    qmodel = freeze(keras.Model(model.inputs, by_key))
    path = tmp_path / "model.tflite"
    export.convert(qmodel, path, data=images(qmodel))
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(model_path=str(path)).get_signature_runner()
    found, expected = run(x=images(qmodel)[:1]), qmodel.predict(images(qmodel)[:1], verbose=0)
    assert set(found) == set(expected) == {"zoo", "bar", "foo"}
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, atol=1 / 128)
