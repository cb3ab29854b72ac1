import re
import shutil
import subprocess

import numpy as np
import pytest
from helpers.frozen_models import images

from dqmq_tf import export, flatbuffer
from dqmq_tf.errors import ConversionError
from dqmq_tf.export import c_array
from dqmq_tf.flatbuffer import TFLiteFile, metadata
from dqmq_tf.runtimes import tflite_micro

COMPILER = shutil.which("g++") or shutil.which("clang++")
PROGRAM = """
#include <cstdio>
#include "model-1.h"
#include "model-1.h"

struct Resolver {  // Has the methods that the file needs, and no others.
  int AddConv2D() { return count++ * 0; }
  int AddFullyConnected() { return count++ * 0; }
  int AddMean() { return count++ * 0; }
  int AddSoftmax() { return count++ * 0; }
  int count = 0;
};

using namespace model_1;
static_assert(kInput0Size == 8 * 8 * 3 && kInput0Shape[3] == 3 && sizeof(Input0Type) == 1, "");
static_assert(kNormalization[0].channels == 0 && kLabelCount == 0, "");
static_assert(kOutput0ZeroPoint == -128 && kOutput0Scale == 1.0f / 256, "");

int main() {
  Resolver resolver;
  bool added = AddOperators(resolver) && resolver.count == kOperators;
  std::printf("%d %d %zu %zu %.9g %d\\n", added, int(reinterpret_cast<std::size_t>(kModel) % 16),
              kArenaMeasuredBytes, kArenaBytes, kInput0Scale, kInput0ZeroPoint);
  std::fwrite(kModel, 1, kModelBytes, stdout);
}
"""


@pytest.fixture(scope="module")
def int8_file(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "small.tflite"
    export.convert(small, path, io_dtype="int8", data=images(small), verify=False)
    return path.read_bytes()


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler (g++ or clang++) on this machine")
def test_the_compiled_array_is_the_file(int8_file, tmp_path):
    export.write_c_array(int8_file, tmp_path / "model-1.cc")
    (tmp_path / "main.cc").write_text(PROGRAM)
    subprocess.run(
        [COMPILER, "-std=c++17", "-Wall", "-Wextra", "-Wno-unused", "-Werror", "main.cc"]
        + ["model-1.cc", "-o", "main"],
        cwd=tmp_path,
        check=True,
    )
    said = subprocess.run(["./main"], cwd=tmp_path, check=True, capture_output=True).stdout
    line, contents = said.split(b"\n", 1)
    assert contents == int8_file
    added, misaligned, measured, arena, scale, zero_point = line.decode().split()
    assert (added, misaligned) == ("1", "0")
    assert int(measured) == tflite_micro.arena_bytes(int8_file)
    assert 1.1 * int(measured) <= int(arena) < 1.1 * int(measured) + 1024
    part = flatbuffer.read(int8_file).subgraphs[0]
    source = part.tensors[part.inputs[0]].quantization
    assert np.float32(scale) == source.scale[0]
    assert int(zero_point) == source.zeroPoint[0]


def test_the_header_names_the_ends_of_the_model(int8_file, small_file):
    _, header = c_array.render(TFLiteFile(int8_file), "model", 1000)
    assert "// Input0: image\n" in header
    name = flatbuffer.read(int8_file).signatureDefs[0].outputs[0].name.decode()
    assert name.startswith("head")
    assert f"// Output0: {name}\n" in header
    _, header = c_array.render(TFLiteFile.load(small_file[0]), "model", 1000)
    assert "using Input0Type = float;" in header
    assert "kInput0Scale" not in header
    assert re.findall(r"resolver\.(\w+)\(\);", header)[-2:] == ["AddQuantize", "AddSoftmax"]


FEEDING = """
#include <cstdio>
#include "model.h"

int main() {
  const model::Normalization image = model::kNormalization[0];
  for (std::size_t i = 0; i < image.channels; ++i) {
    std::printf("%.9g %.9g\\n", image.mean[i], image.std[i]);
  }
  for (const char* label : model::kLabels) std::printf("%s\\n", label);
  static_assert(model::kLabelCount == 4 && sizeof(model::kNormalization) == sizeof(image), "");
}
"""


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler (g++ or clang++) on this machine")
def test_the_header_says_how_to_feed_the_network(int8_file, tmp_path):
    labels = ['a "1st" cat', "dog\\1?", "Fußgänger", "??/ 2"]
    mean, std = [123.68, 0, 103.53], [58.4, 57.1, 1]
    entry = {"mean": mean, "std": std, "color": "BGR", "resize": "area"}
    file = TFLiteFile(int8_file).copy()
    facts = metadata.with_input_facts(file.metadata, {"inputs": {"image": entry}, "labels": labels})
    metadata.attach(file.model, facts, "2.11.0")
    file.edited()
    _, header = c_array.render(file, "model", 1000)
    assert "// Input0 is an image: color BGR, resize area.\n" in header
    (tmp_path / "model.h").write_text(header)
    (tmp_path / "main.cc").write_text(FEEDING)
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wno-unused", "-Werror", "-Wtrigraphs"]
    subprocess.run([COMPILER, *flags, "main.cc", "-o", "main"], cwd=tmp_path, check=True)
    said = subprocess.run(["./main"], cwd=tmp_path, check=True, capture_output=True).stdout
    lines = said.decode().splitlines()
    np.testing.assert_array_equal(
        np.float32([line.split() for line in lines[:3]]).T, np.float32([mean, std])
    )
    assert lines[3:] == labels


@pytest.mark.parametrize(
    "operator,call",
    [
        ("CONV_2D", "AddConv2D"),
        ("AVERAGE_POOL_2D", "AddAveragePool2D"),
        ("RESIZE_NEAREST_NEIGHBOR", "AddResizeNearestNeighbor"),
        ("BATCH_MATMUL", "AddBatchMatMul"),
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", "AddUnidirectionalSequenceLSTM"),
        ("PADV2", "AddPadV2"),
        ("RELU6", "AddRelu6"),
    ],
)
def test_resolver_calls(operator, call):
    assert c_array.resolver_calls(model_of(operator)) == [call]


def test_custom_operators():
    assert c_array.resolver_calls(model_of("CUSTOM", b"TFLM_DECODE")) == ["AddDecode"]
    assert c_array.resolver_calls(model_of("CUSTOM", b"ethos-u")) == ["AddEthosU"]
    with pytest.raises(ConversionError, match="Operator CUSTOM is not among those"):
        c_array.resolver_calls(model_of("CUSTOM", b"mine"))


def test_an_operator_that_tflm_lacks_is_refused():
    with pytest.raises(ConversionError, match="Operator GELU is not among those of TFLite Micro"):
        c_array.resolver_calls(model_of("GELU"))


def model_of(operator, custom=None):
    schema = flatbuffer.schema()
    model, code = schema.ModelT(), schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, operator)
    code.customCode = custom
    model.operatorCodes = [code]
    return model


def test_several_signatures_are_refused(int8_file, tmp_path):
    schema, model = flatbuffer.schema(), flatbuffer.read(int8_file)
    model.subgraphs.append(model.subgraphs[0])
    other = schema.SignatureDefT()
    other.signatureKey, other.subgraphIndex, other.inputs, other.outputs = b"b", 1, [], []
    model.signatureDefs.append(other)
    with pytest.raises(ConversionError, match="2 signatures.*crashes.*one file per profile"):
        export.write_c_array(flatbuffer.write(model), tmp_path / "model.cc", arena_bytes=1000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name,space",
    [
        ("model", "model"),
        ("2nd", "model_2nd"),
        ("ResNet-8 v2", "resnet_8_v2"),
        ("int", "model_int"),
        ("Catch", "model_catch"),
        ("true", "model_true"),
        ("typename", "model_typename"),
        ("xor-eq", "model_xor_eq"),
        ("co_await", "model_co_await"),
    ],
)
def test_namespaces(name, space):
    assert c_array.c_name(name) == space


def test_a_name_that_no_include_can_hold_is_refused(int8_file, tmp_path):
    for name in ('a"b', "a\nb"):
        with pytest.raises(ValueError, match="cannot stand between the quotation marks"):
            export.write_c_array(int8_file, tmp_path / f"{name}.cc")
    assert not list(tmp_path.iterdir())


def test_the_suffix_is_checked(tmp_path):
    with pytest.raises(ValueError, match="must end in '.cc'"):
        export.write_c_array(b"", tmp_path / "model.h")


def test_the_folder_is_checked_first(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"The folder '.*missing' of path=.* does not exist"
    ):
        export.write_c_array(b"", tmp_path / "missing" / "model.cc")
    (tmp_path / "model.cc").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        export.write_c_array(b"", tmp_path / "model.cc")
