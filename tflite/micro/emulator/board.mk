# The part of the Makefile for the boards that QEMU emulates.

KERNELS ?= cmsis_nn
ifeq ($(BOARD),mps2-an386)
  ARCHITECTURE := cortex-m4
  MACHINE_FLAGS := -mcpu=cortex-m4+nofp -mthumb -mfloat-abi=soft
  MEMORY := ROM_START=0x00000000 ROM_BYTES=4M RAM_START=0x20000000 RAM_BYTES=4M
  FPGA := -DFPGA_IO=0x40028000 -DTICKS_PER_SECOND=25000000
else ifeq ($(BOARD),mps3-an547)
  ARCHITECTURE := cortex-m55
  MACHINE_FLAGS := -mcpu=cortex-m55 -mthumb -mfloat-abi=hard
  MEMORY := ROM_START=0x00000000 ROM_BYTES=512K RAM_START=0x21000000 RAM_BYTES=4M
  FPGA := -DFPGA_IO=0x49302000 -DTICKS_PER_SECOND=20000000
else
  $(error BOARD=$(BOARD) is not known: mps2-an386 has a Cortex-M4, mps3-an547 a Cortex-M55)
endif
ifeq ($(filter reference cmsis_nn,$(KERNELS)),)
  $(error KERNELS=$(KERNELS) is not known: reference or cmsis_nn)
endif

TOOLS := arm-none-eabi-
CXX := $(TOOLS)g++

# TFLite Micro's Makefile would otherwise fetch a compiler of its own and compile kernels with -O2. Its
# objects lie apart from those of other settings.
OBJECTS := gen/dqmq_tf
KERNEL_DIR := $(filter-out reference,$(KERNELS))
TFLM_FLAGS := TARGET=cortex_m_generic TARGET_ARCH=$(ARCHITECTURE) BUILD_TYPE=release \
  OPTIMIZED_KERNEL_DIR=$(KERNEL_DIR) BASE_GENDIR=$(OBJECTS) \
  TARGET_TOOLCHAIN_ROOT=$(dir $(shell command -v $(CXX))) \
  KERNEL_OPTIMIZATION_LEVEL=-Os THIRD_PARTY_KERNEL_OPTIMIZATION_LEVEL=-Os
CONFIGURATION := cortex_m_generic_$(ARCHITECTURE)_release$(addprefix _,$(KERNEL_DIR))_gcc
LIBRARY := $(TFLM_DIR)/$(OBJECTS)/$(CONFIGURATION)/lib/libtensorflow-microlite.a

# A comma in a call of make's functions separates arguments.
, := ,
override CXXFLAGS += $(MACHINE_FLAGS) -Os -ffunction-sections -fdata-sections -fno-unwind-tables \
  -fno-asynchronous-unwind-tables -fno-threadsafe-statics -DNDEBUG -DTF_LITE_STRIP_ERROR_STRINGS -DEMULATED $(FPGA) -I.
override LDFLAGS += -nostartfiles -T emulator/memory.ld -Wl,--gc-sections --specs=nano.specs \
  $(addprefix -Wl$(,)--defsym=,$(MEMORY))

BOARD_OBJECTS := $(BUILD)/emulator/start.o $(BUILD)/emulator/host.o
# Standard streams by semihosting; numbers with a point, which the C library leaves out otherwise.
$(BUILD)/model: override LDFLAGS += --specs=rdimon.specs -u _printf_float -u _scanf_float
$(BUILD)/model $(BUILD)/firmware: emulator/memory.ld

# QEMU runs in the folder with inputs.txt and outputs.txt. The time of -icount is what emulator/host.h
# expects.
run: $(BUILD)/model
	cp $(INPUTS) $(BUILD)/inputs.txt
	cd $(BUILD) && qemu-system-arm -machine $(BOARD) -icount shift=7 -kernel model \
	  -semihosting-config enable=on,target=native -display none -monitor none -serial none
	cat $(BUILD)/outputs.txt

size: $(BUILD)/firmware
	$(TOOLS)size $<

$(BUILD)/firmware: $(BUILD)/firmware.o $(BUILD)/array.o $(BUILD)/emulator/start.o library
	$(CXX) $(CXXFLAGS) -o $@ $(filter %.o,$^) $(LIBRARY) $(LDFLAGS) --specs=nosys.specs -lm
