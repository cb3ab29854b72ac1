// What a program on an emulated board gets from the machine that emulates it: standard streams, which
// are files in the folder in which QEMU runs (host.cc opens them before main()), and a count of
// instructions.

#ifndef DQMQ_TF_EMULATOR_HOST_H_
#define DQMQ_TF_EMULATOR_HOST_H_

#include <cstdint>

// Ticks of the board's clock since it started, TICKS_PER_SECOND of them in a second.
std::uint64_t Ticks();

// The instructions that the processor ran between two readings of Ticks(), whatever they do. QEMU's
// option `-icount shift=7` gives each of them 128 ns, more than two ticks, so that the rounded quotient
// is exact. The 14 instructions of reading the clock are included.
constexpr std::uint64_t Instructions(std::uint64_t begin, std::uint64_t end) {
  constexpr std::uint64_t kNanosecondsPerTick = 1'000'000'000 / TICKS_PER_SECOND;
  constexpr std::uint64_t kNanosecondsPerInstruction = 1 << 7;
  return ((end - begin) * kNanosecondsPerTick + kNanosecondsPerInstruction / 2) /
         kNanosecondsPerInstruction;
}

#endif  // DQMQ_TF_EMULATOR_HOST_H_
