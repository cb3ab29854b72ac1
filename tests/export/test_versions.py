from dqmq_tf.export import flatbuffer


def versions(path):
    model = flatbuffer.read(path.read_bytes())
    part, found = model.subgraphs[0], {}
    for operator in part.operators:
        name = flatbuffer.operator_name(model, operator)
        types = [flatbuffer.type_name(part.tensors[i]) for i in operator.inputs if i >= 0]
        weights = types[1] if len(types) > 1 else types[0]
        found[name, weights] = model.operatorCodes[operator.opcodeIndex].version
    return found


def test_versions_follow_the_types(every_bit_width):
    qmodel, path, report = every_bit_width
    found = versions(path)
    newest = dict(qmodel.target.operator_versions)
    for (name, _), version in found.items():
        assert version <= newest.get(name, version)
    assert found["DEPTHWISE_CONV_2D", "INT8"] == 3
    assert found["CONV_2D", "INT8"] == 3
    assert found["FULLY_CONNECTED", "INT8"] == 4
    assert found["AVERAGE_POOL_2D", "INT8"] == 2
    int8_ends = qmodel.target.name in ("microcontroller", "ethos_u")
    assert (("QUANTIZE", "FLOAT32") in found) != int8_ends
    if not int8_ends:
        assert found["QUANTIZE", "FLOAT32"] == 1
        assert found["DEQUANTIZE", "INT8"] == 2
    if qmodel.target.name in ("android_small", "microcontroller"):
        assert found["CONV_2D", "INT4"] == 7
        assert found["DEPTHWISE_CONV_2D", "INT4"] == 7
    if qmodel.target.name == "android_small":
        assert found["FULLY_CONNECTED", "INT4"] == 10
        assert found["FULLY_CONNECTED", "INT2"] == 14
    oldest = {"android_small": "2.21.0", "microcontroller": "2.11.0"}
    assert report.min_runtime_version == oldest.get(qmodel.target.name, "1.14.0")
