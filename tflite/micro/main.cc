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

// Bytes of a number of a type; 0 for a type that this program does not know.
std::size_t Width(TfLiteType type) {
  switch (type) {
    case kTfLiteFloat32:
    case kTfLiteInt32:
      return 4;
    case kTfLiteInt16:
      return 2;
    case kTfLiteInt8:
      return 1;
    default:
      return 0;
  }
}

std::size_t Count(const TfLiteTensor& tensor) { return tensor.bytes / Width(tensor.type); }

// Sets a number of an input. Where the input has a grid, it is rounded half to even as in training.
void Set(TfLiteTensor& tensor, std::size_t i, float value) {
  if (tensor.type == kTfLiteFloat32) {
    tensor.data.f[i] = value;
  } else if (tensor.type == kTfLiteInt32) {  // It has no grid: an index, such as that of a word.
    tensor.data.i32[i] = static_cast<std::int32_t>(value);
  } else {
    const float most = tensor.type == kTfLiteInt16 ? 32767.0f : 127.0f;
    const float rounded = std::nearbyint(value / tensor.params.scale) +
                          static_cast<float>(tensor.params.zero_point);
    const float clipped = std::fmin(std::fmax(rounded, -most - 1.0f), most);
    if (tensor.type == kTfLiteInt16) {
      tensor.data.i16[i] = static_cast<std::int16_t>(clipped);
    } else {
      tensor.data.int8[i] = static_cast<std::int8_t>(clipped);
    }
  }
}

// Returns a number of an output.
double Get(const TfLiteTensor& tensor, std::size_t i) {
  if (tensor.type == kTfLiteFloat32) return tensor.data.f[i];
  // The precision profile that an adaptive network chose, or an index.
  if (tensor.type == kTfLiteInt32) return tensor.data.i32[i];
  const std::int32_t integer = tensor.type == kTfLiteInt16 ? tensor.data.i16[i] : tensor.data.int8[i];
  return tensor.params.scale * static_cast<float>(integer - tensor.params.zero_point);
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
    Set(tensor, i, value);
  }
  return Reading::kWhole;
}

void Print(const TfLiteTensor& tensor) {
  const std::size_t count = Count(tensor);
  for (std::size_t i = 0; i < count; ++i) std::printf(i ? " %.9g" : "%.9g", Get(tensor, i));
  std::printf("\n");
}

void PrintLabel(const TfLiteTensor& scores) {
  if (model::kLabelCount == 0 || Count(scores) != model::kLabelCount) return;
  std::size_t best = 0;
  for (std::size_t i = 1; i < model::kLabelCount; ++i) {
    if (Get(scores, i) > Get(scores, best)) best = i;
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

bool Supported(const TfLiteTensor& tensor, const char* kind, std::size_t number) {
  if (Width(tensor.type) > 0) return true;
  std::fprintf(stderr, "%s %u has a type that this program does not know.\n", kind,
               static_cast<unsigned>(number));
  return false;
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
    if (!Supported(*interpreter.input(i), "Input", i)) return 1;
  }
  for (std::size_t i = 0; i < interpreter.outputs_size(); ++i) {
    if (!Supported(*interpreter.output(i), "Output", i)) return 1;
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
