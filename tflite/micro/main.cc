// Runs a network that dqmq_tf exported as a C array on TFLite Micro.
//
// Reads real numbers from the standard input, as many as the network's inputs hold, one input after
// another in rows; runs the network; prints the outputs as real numbers, a line for each output. Goes on
// until the numbers end. Where the header says how an image is normalized, the numbers are its pixels,
// from 0 to 255; where it has labels, the class goes to the standard error. On a board the standard
// streams are what its C library makes of them, such as semihosting or a UART.
//
// MODEL_HEADER and MODEL_NAMESPACE name what `dqmq_tf.export.write_c_array` wrote; see the Makefile.
// EMULATED makes a program for a board that QEMU emulates: it prints the instructions of each run too.

#include <cmath>
#include <cstdint>
#include <cstdio>

#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"

#include MODEL_HEADER

#ifdef EMULATED
#include "emulator/host.h"
#endif

namespace model = MODEL_NAMESPACE;

#ifndef ARENA_BYTES
#define ARENA_BYTES model::kArenaBytes
#endif

namespace {

alignas(16) std::uint8_t arena[ARENA_BYTES];

enum class Reading { kWhole, kEnd, kBroken };

std::size_t Count(const TfLiteTensor& tensor) {
  return tensor.type == kTfLiteFloat32 ? tensor.bytes / sizeof(float) : tensor.bytes;
}

// Reads one input; kEnd if not even its first number is there.
Reading Read(TfLiteTensor& tensor, const model::Normalization& normalization) {
  const std::size_t count = Count(tensor);
  for (std::size_t i = 0; i < count; ++i) {
    float value = 0.0f;
    const int found = std::scanf("%f", &value);
    if (found == EOF && i == 0) return Reading::kEnd;
    if (found != 1) {
      std::fprintf(stderr, "Input number %u of %u is missing or no number.\n",
                   static_cast<unsigned>(i + 1), static_cast<unsigned>(count));
      return Reading::kBroken;
    }
    if (normalization.channels > 0) {
      const std::size_t channel = i % normalization.channels;
      value = (value - normalization.mean[channel]) / normalization.std[channel];
    }
    if (tensor.type == kTfLiteFloat32) {
      tensor.data.f[i] = value;
      continue;
    }
    // To the grid of the input, half to even as in training.
    const float rounded = std::nearbyint(value / tensor.params.scale) +
                          static_cast<float>(tensor.params.zero_point);
    tensor.data.int8[i] = static_cast<std::int8_t>(std::fmin(std::fmax(rounded, -128.0f), 127.0f));
  }
  return Reading::kWhole;
}

void Print(const TfLiteTensor& tensor) {
  if (tensor.type == kTfLiteInt32) {  // The precision profile that an adaptive network chose.
    std::printf("%d\n", static_cast<int>(tensor.data.i32[0]));
    return;
  }
  const std::size_t count = Count(tensor);
  for (std::size_t i = 0; i < count; ++i) {
    const float value =
        tensor.type == kTfLiteFloat32
            ? tensor.data.f[i]
            : tensor.params.scale *
                  static_cast<float>(tensor.data.int8[i] - tensor.params.zero_point);
    std::printf(i ? " %.9g" : "%.9g", static_cast<double>(value));
  }
  std::printf("\n");
}

void PrintLabel(const TfLiteTensor& scores) {
  if (model::kLabelCount == 0 || Count(scores) != model::kLabelCount) return;
  std::size_t best = 0;
  for (std::size_t i = 1; i < model::kLabelCount; ++i) {
    const bool higher = scores.type == kTfLiteFloat32
                            ? scores.data.f[i] > scores.data.f[best]
                            : scores.data.int8[i] > scores.data.int8[best];
    if (higher) best = i;
  }
  std::fprintf(stderr, "%s\n", model::kLabels[best]);
}

TfLiteStatus Run(tflite::MicroInterpreter& interpreter) {
#ifdef EMULATED
  const std::uint64_t begin = Ticks();
  const TfLiteStatus status = interpreter.Invoke();
  // The C library for small systems prints no 64-bit numbers; a double is exact up to 2^53.
  std::fprintf(stderr, "%.0f instructions.\n", static_cast<double>(Instructions(begin, Ticks())));
  return status;
#else
  return interpreter.Invoke();
#endif
}

bool Supported(const TfLiteTensor& tensor) {
  return tensor.type == kTfLiteFloat32 || tensor.type == kTfLiteInt8;
}

}  // namespace

int main() {
  tflite::InitializeTarget();
  const tflite::Model* network = tflite::GetModel(model::kModel);
  if (network->version() != TFLITE_SCHEMA_VERSION) {
    std::fprintf(stderr, "The model has schema version %u, this TFLite Micro %d.\n",
                 static_cast<unsigned>(network->version()), TFLITE_SCHEMA_VERSION);
    return 1;
  }
  static tflite::MicroMutableOpResolver<model::kOperators> resolver;
  if (!model::AddOperators(resolver)) {
    std::fprintf(stderr, "This TFLite Micro does not take all operators of the model.\n");
    return 1;
  }
  static tflite::MicroInterpreter interpreter(network, resolver, arena, sizeof(arena));
  if (interpreter.AllocateTensors() != kTfLiteOk) {
    std::fprintf(stderr, "%u bytes of arena are not enough: compile with a larger ARENA_BYTES.\n",
                 static_cast<unsigned>(sizeof(arena)));
    return 1;
  }
  std::fprintf(stderr, "%u of %u bytes of the arena are used.\n",
               static_cast<unsigned>(interpreter.arena_used_bytes()),
               static_cast<unsigned>(sizeof(arena)));
  for (std::size_t i = 0; i < interpreter.inputs_size(); ++i) {
    if (!Supported(*interpreter.input(i))) return 1;
  }
  for (;;) {
    for (std::size_t i = 0; i < interpreter.inputs_size(); ++i) {
      const Reading reading = Read(*interpreter.input(i), model::kNormalization[i]);
      if (reading == Reading::kEnd && i == 0) return 0;
      if (reading != Reading::kWhole) return 1;
    }
    if (Run(interpreter) != kTfLiteOk) {
      std::fprintf(stderr, "The network failed to run.\n");
      return 1;
    }
    for (std::size_t i = 0; i < interpreter.outputs_size(); ++i) Print(*interpreter.output(i));
    PrintLabel(*interpreter.output(0));
    std::fflush(stdout);
  }
}
