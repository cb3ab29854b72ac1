// The emulated board's connection to the machine that emulates it; see host.h.

#include "host.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>

// Opens the standard streams of the C library by semihosting.
extern "C" void initialise_monitor_handles();

namespace {

// Runs before main(): the standard input is inputs.txt, the standard output outputs.txt, both in the
// folder in which QEMU runs. The standard error goes to QEMU's. QEMU's own console, which would be the
// standard input, never ends.
[[gnu::constructor]] void OpenStreams() {
  initialise_monitor_handles();
  if (std::freopen("inputs.txt", "r", stdin) == nullptr ||
      std::freopen("outputs.txt", "w", stdout) == nullptr) {
    std::fputs("inputs.txt cannot be read or outputs.txt cannot be written.\n", stderr);
    std::_Exit(1);
  }
  // The end of the program empties no buffer; see start.cc.
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
}

// Counters in the board's FPGA: hundredths of a second, and ticks.
const auto* const hundredths = reinterpret_cast<volatile std::uint32_t*>(FPGA_IO + 0x14);
const auto* const ticks = reinterpret_cast<volatile std::uint32_t*>(FPGA_IO + 0x18);

}  // namespace

std::uint64_t Ticks() {
  const std::uint64_t coarse = std::uint64_t{*hundredths} * (TICKS_PER_SECOND / 100);
  const std::uint32_t fine = *ticks;
  // The fine counter overflows every few minutes. The coarse one tells how often it did.
  return coarse + static_cast<std::int32_t>(fine - static_cast<std::uint32_t>(coarse));
}
