"""`tflite/micro/main.cc` reads and prints inputs and outputs of all types that a C array may have.

A stand-in for TFLite Micro, whose network copies its input, needs only a compiler for this machine.
"""

import pathlib
import shutil
import subprocess

import pytest

MAIN = pathlib.Path(__file__).resolve().parents[2] / "tflite" / "micro" / "main.cc"
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="not installed: g++")
HEADERS = {
    "tensorflow/lite/schema/schema_generated.h": """
#define TFLITE_SCHEMA_VERSION 3
namespace tflite {
struct Model { unsigned version() const { return 3; } };
inline const Model* GetModel(const void*) { static Model model; return &model; }
}
""",
    "tensorflow/lite/micro/system_setup.h": "namespace tflite { inline void InitializeTarget() {} }",
    "tensorflow/lite/micro/micro_mutable_op_resolver.h": """
namespace tflite { template <unsigned int count> struct MicroMutableOpResolver {}; }
""",
    "tensorflow/lite/micro/micro_interpreter.h": """
#include <cstddef>
#include <cstdint>
#include <cstring>
enum TfLiteStatus { kTfLiteOk, kTfLiteError };
enum TfLiteType { kTfLiteFloat32, kTfLiteInt32, kTfLiteInt64, kTfLiteInt16, kTfLiteInt8 };
struct TfLiteTensor {
  TfLiteType type;
  union { float* f; std::int32_t* i32; std::int16_t* i16; std::int8_t* int8; char* raw; } data;
  std::size_t bytes;
  struct { float scale; std::int32_t zero_point; } params;
};
namespace tflite {
struct MicroInterpreter {
  template <typename... Arguments> MicroInterpreter(Arguments&&...) {}
  TfLiteStatus AllocateTensors() { return kTfLiteOk; }
  std::size_t arena_used_bytes() { return 1; }
  std::size_t inputs_size() { return 1; }
  std::size_t outputs_size() { return 1; }
  TfLiteTensor* input(std::size_t) { return &ends[0]; }
  TfLiteTensor* output(std::size_t) { return &ends[1]; }
  TfLiteStatus Invoke() {
    std::memcpy(memory[1], memory[0], ends[0].bytes);
    return kTfLiteOk;
  }
  alignas(8) char memory[2][64];
  TfLiteTensor ends[2] = {{KIND, {.raw = memory[0]}, 3 * WIDTH, {SCALE, ZERO_POINT}},
                          {KIND, {.raw = memory[1]}, 3 * WIDTH, {SCALE, ZERO_POINT}}};
};
}
""",
    "model.h": """
namespace network {
constexpr unsigned char kModel[] = {0};
constexpr std::size_t kArenaBytes = 16;
constexpr unsigned int kOperators = 1;
struct Normalization { std::size_t channels; const float* mean; const float* std; };
constexpr Normalization kNormalization[] = {{0, nullptr, nullptr}};
constexpr std::size_t kLabelCount = 3;
constexpr const char* kLabels[] = {"one", "two", "three"};
template <typename Resolver> bool AddOperators(Resolver&) { return true; }
}
""",
}


def run(folder, text, kind, width, scale="0.0f", zero_point=0):
    """Compiles the program for a type, and returns the completed process."""
    for name, contents in HEADERS.items():
        path = folder / "include" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#pragma once\n" + contents)
    values = {"KIND": kind, "WIDTH": width, "SCALE": scale, "ZERO_POINT": zero_point}
    values |= {"MODEL_HEADER": '"model.h"', "MODEL_NAMESPACE": "network"}
    flags = [f"-D{name}={value}" for name, value in values.items()]
    command = ["g++", "-std=c++20", "-Wall", "-Werror", f"-I{folder / 'include'}", *flags]
    subprocess.run([*command, str(MAIN), "-o", str(folder / "program")], check=True)
    return subprocess.run(
        [str(folder / "program")], input=text, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    "kind, width, scale, zero_point, printed",
    [
        ("kTfLiteFloat32", 4, "0.0f", 0, "2 -1.26 300"),
        ("kTfLiteInt32", 4, "0.0f", 0, "2 -1 300"),
        ("kTfLiteInt16", 2, "0.25f", 0, "2 -1.25 300"),
        ("kTfLiteInt8", 1, "0.25f", 4, "2 -1.25 30.75"),
    ],
)
def test_numbers_of_each_type_are_read_and_printed(
    kind, width, scale, zero_point, printed, tmp_path
):
    done = run(tmp_path, "2 -1.26 300\n1 0 0\n", kind, width, scale, zero_point)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.split()[0] == "2" and first.split()[2] == printed.split()[2]
    assert float(first.split()[1]) == pytest.approx(float(printed.split()[1]))
    assert second == "1 0 0"
    assert done.stderr.split()[-2:] == ["three", "one"]


def test_another_type_is_named(tmp_path):
    done = run(tmp_path, "1 2 3\n", "kTfLiteInt64", 8)
    assert done.returncode == 1
    assert "Input 0 has a type that this program does not know." in done.stderr
