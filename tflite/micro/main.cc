// Runs a network that dqmq_tf exported as a C array, on TFLite Micro, and prints its outputs.
//
//   ./run [inputs.bin]
//
// inputs.bin holds, for each input one after the other, its values as the header types them (int8 or
// float, in the byte order of this machine); without it all values are those of zero. Exit code 1:
// the network cannot be set up or run; 2: the inputs cannot be read.

#include <cstdint>
#include <cstdio>

#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"

// The Makefile names the header and the namespace of the exported network.
#include MODEL_HEADER
namespace network = MODEL_NAMESPACE;

namespace {

alignas(16) std::uint8_t arena[network::kArenaBytes];

int Fail(const char* what, int code) {
  std::fprintf(stderr, "%s\n", what);
  return code;
}

bool Read(TfLiteTensor* tensor, std::FILE* file) {
  if (file != nullptr) {
    return std::fread(tensor->data.raw, 1, tensor->bytes, file) == tensor->bytes;
  }
  for (std::size_t i = 0; i < tensor->bytes; ++i) {
    tensor->data.raw[i] =
        tensor->type == kTfLiteInt8 ? static_cast<char>(tensor->params.zero_point) : 0;
  }
  return true;
}

void Print(const TfLiteTensor* tensor, int number) {
  std::printf("output %d:", number);
  switch (tensor->type) {
    case kTfLiteInt8:
      for (std::size_t i = 0; i < tensor->bytes; ++i) {
        std::printf(" %g", static_cast<double>(tensor->params.scale) *
                               (tensor->data.int8[i] - tensor->params.zero_point));
      }
      break;
    case kTfLiteFloat32:
      for (std::size_t i = 0; i < tensor->bytes / sizeof(float); ++i) {
        std::printf(" %g", static_cast<double>(tensor->data.f[i]));
      }
      break;
    case kTfLiteInt32:  // The precision profile that an adaptive network chose.
      for (std::size_t i = 0; i < tensor->bytes / sizeof(std::int32_t); ++i) {
        std::printf(" %d", static_cast<int>(tensor->data.i32[i]));
      }
      break;
    default:
      std::printf(" of a type that this program does not print");
  }
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  const tflite::Model* model = tflite::GetModel(network::kModel);
  if (model->version() != TFLITE_SCHEMA_VERSION) {
    return Fail("the schema version of the network is not that of this TFLite Micro", 1);
  }
  tflite::MicroMutableOpResolver<network::kOperators> resolver;
  if (!network::AddOperators(resolver)) return Fail("an operator could not be added", 1);
  tflite::MicroInterpreter interpreter(model, resolver, arena, sizeof(arena));
  if (interpreter.AllocateTensors() != kTfLiteOk) {
    return Fail("the tensor arena is too small, or an operator refuses the network", 1);
  }
  std::FILE* file = nullptr;
  if (argc > 1 && (file = std::fopen(argv[1], "rb")) == nullptr) {
    return Fail("the file of inputs cannot be opened", 2);
  }
  bool complete = true;
  for (std::size_t i = 0; i < interpreter.inputs_size(); ++i) {
    complete = complete && Read(interpreter.input(i), file);
  }
  if (file != nullptr) std::fclose(file);
  if (!complete) return Fail("the file of inputs is shorter than the inputs", 2);
  if (interpreter.Invoke() != kTfLiteOk) return Fail("an operator failed", 1);
  for (std::size_t i = 0; i < interpreter.outputs_size(); ++i) {
    Print(interpreter.output(i), static_cast<int>(i));
  }
  std::printf("arena: %u of %u bytes used\n",
              static_cast<unsigned>(interpreter.arena_used_bytes()),
              static_cast<unsigned>(sizeof(arena)));
  return 0;
}
