// The least firmware around a network that dqmq_tf exported as a C array: what a program of your own
// adds to its own code, and nothing else. Linking it tells what the network costs in flash.
//
// MODEL_HEADER and MODEL_NAMESPACE name what `dqmq_tf.export.write_c_array` wrote; see the Makefile.

#include <cstdint>

#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"

#include MODEL_HEADER

namespace model = MODEL_NAMESPACE;

#ifndef ARENA_BYTES
#define ARENA_BYTES model::kArenaBytes
#endif

namespace {

alignas(16) std::uint8_t arena[ARENA_BYTES];

}  // namespace

// Where your firmware puts what it measured, and where it reads what the network says.
volatile model::Input0Type sensor;
volatile model::Output0Type actuator;

int main() {
  static tflite::MicroMutableOpResolver<model::kOperators> resolver;
  if (!model::AddOperators(resolver)) return 1;
  static tflite::MicroInterpreter interpreter(tflite::GetModel(model::kModel), resolver, arena,
                                              sizeof(arena));
  if (interpreter.AllocateTensors() != kTfLiteOk) return 1;
  auto* const input = interpreter.typed_input_tensor<model::Input0Type>(0);
  const auto* const output = interpreter.typed_output_tensor<model::Output0Type>(0);
  for (;;) {
    for (std::size_t i = 0; i < model::kInput0Size; ++i) input[i] = sensor;
    if (interpreter.Invoke() != kTfLiteOk) return 1;
    for (std::size_t i = 0; i < model::kOutput0Size; ++i) actuator = output[i];
  }
}
