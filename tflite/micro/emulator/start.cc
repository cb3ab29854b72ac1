// Vector table and start code for the Cortex-M boards that QEMU emulates; see README.md.
//
// Prepares what C++ code expects of a machine (data, zeroed memory, floating-point unit, constructors),
// runs main() and ends the emulation with its result. Destructors and functions of std::atexit() do not
// run: firmware does not end.

#include <cstdint>
#include <cstdlib>
#include <cstring>

// C++ does not let a program call main by its name.
int Program() asm("main");

// Addresses that memory.ld sets.
extern "C" {
extern std::uint8_t stack_end[];
extern const std::uint8_t data_source[];
extern std::uint8_t data_start[], data_end[], bss_start[], bss_end[];
using Constructor = void (*)();
extern const Constructor constructors_start[], constructors_end[];
}

namespace {

// Ends the emulation with an error. There is nothing to return to.
[[noreturn]] void Fault() { std::_Exit(1); }

[[noreturn]] void Start() {
  std::memcpy(data_start, data_source, static_cast<std::size_t>(data_end - data_start));
  std::memset(bss_start, 0, static_cast<std::size_t>(bss_end - bss_start));
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
  // Coprocessors 10 and 11, the floating-point and vector unit, are off after a reset.
  volatile auto& coprocessors = *reinterpret_cast<std::uint32_t*>(0xE000ED88);
  coprocessors = coprocessors | (0xFu << 20);
  asm volatile("dsb\n isb" ::: "memory");
#endif
  for (const Constructor* constructor = constructors_start; constructor != constructors_end;
       ++constructor) {
    (*constructor)();
  }
  std::_Exit(Program());
}

struct Vectors {
  const void* stack;
  void (*start)();
  // Non-maskable interrupt, hard fault, memory, bus, usage and secure fault. No interrupt is enabled.
  void (*faults[6])();
};

[[gnu::section(".vectors"), gnu::used]] const Vectors vectors = {
    stack_end, Start, {Fault, Fault, Fault, Fault, Fault, Fault}};

}  // namespace

// Where C++ code registers the destructors of its static objects. They do not run.
extern "C" {
void* __dso_handle = nullptr;
int __aeabi_atexit(void*, void (*)(void*), void*) { return 0; }
}
