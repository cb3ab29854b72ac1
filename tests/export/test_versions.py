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
    assert found["CONV_2D", "INT8"] == 3
    assert found["DEPTHWISE_CONV_2D", "INT8"] == 3
    assert found["FULLY_CONNECTED", "INT8"] == 4
    assert found["QUANTIZE", "FLOAT32"] == 1
    assert found["DEQUANTIZE", "INT8"] == 2
    assert found["AVERAGE_POOL_2D", "INT8"] == 2
    if qmodel.target.name == "android_small":
        assert found["CONV_2D", "INT4"] == 7
        assert found["DEPTHWISE_CONV_2D", "INT4"] == 7
        assert found["FULLY_CONNECTED", "INT4"] == 10
        assert report.min_runtime_version == "2.11.0"
    else:
        assert report.min_runtime_version == "1.14.0"
