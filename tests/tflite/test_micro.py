"""`tflite/micro/`: a network on emulated boards computes what it computes in the `tflite-micro` wheel.

The tests need a checkout of TFLite Micro, which the variable `TFLM_DIR` names, a compiler for ARM and
QEMU. The first run compiles TFLite Micro for each board, which takes several minutes.
"""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess

import keras
import numpy as np
import pytest
from helpers.frozen_models import freeze, images, layers

from dqmq_tf import export, flatbuffer, targets
from dqmq_tf.runtimes import tflite_micro

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "tflite" / "micro"
TFLM = os.environ.get("TFLM_DIR", "")
PROGRAMS = ("arm-none-eabi-g++", "qemu-system-arm", "make")
ABSENT = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.skipif(not TFLM, reason="TFLM_DIR names no checkout of TFLite Micro"),
    pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}"),
]
SAMPLES = 64
BOARDS = [("mps2-an386", "reference"), ("mps2-an386", "cmsis_nn"), ("mps3-an547", "cmsis_nn")]
# Counts two loops of known length. Each pass takes two instructions.
LOOPS = """
#include <cstdio>
#include "emulator/host.h"

void Loop(unsigned passes) {
  asm volatile("1: subs %0, #1\\n bne 1b" : "+r"(passes) : : "cc");
}

double Counted(unsigned passes) {
  const auto begin = Ticks();
  Loop(passes);
  return static_cast<double>(Instructions(begin, Ticks()));
}

int main() {
  const double none = Counted(1) - 2;
  const unsigned cases[] = {2, 3, 1000, 1001, 1000003, 800000000};
  for (unsigned passes : cases) std::printf("%.0f\\n", Counted(passes) - none);
}
"""


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A model's file with INT8, INT4 and tables, as C array beside it, and inputs as text."""
    folder = tmp_path_factory.mktemp("micro")
    keras.utils.set_random_seed(4)
    inputs = x = keras.Input((8, 8, 8), name="image")
    bits = {"conv3": 3, "depthwise8": 8, "conv4": 4, "conv2": 2, "head": 7}
    x = layers.Conv2D(24, 3, padding="same", activation="relu", name="conv3")(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise8")(x)
    x = layers.Conv2D(24, 3, strides=2, activation="relu", name="conv4")(x)
    x = layers.Conv2D(24, 3, padding="same", activation="relu", name="conv2")(x)
    model = keras.Model(inputs, layers.Dense(10, name="head")(layers.Flatten()(x)))
    # A network of this size does not pay for the decoder.
    target = dataclasses.replace(
        targets.get("microcontroller"), name="microcontroller_decoded", decoder_bytes=0
    )
    export.convert(
        freeze(model, bits, target=target),
        folder / "network.tflite",
        data=images(model),
        artifacts=("c_array",),
    )
    samples = images(model, SAMPLES, seed=5)
    np.savetxt(folder / "inputs.txt", samples.reshape(SAMPLES, -1), fmt="%.9g")
    return folder, samples


def make(network, board, kernels, build, *arguments):
    """Runs the Makefile; returns the completed process."""
    folder, _ = network
    return subprocess.run(
        ["make", "-s", f"TFLM_DIR={TFLM}", f"MODEL={folder / 'network.cc'}", f"BUILD={build}"]
        + [f"BOARD={board}", f"KERNELS={kernels}", f"INPUTS={folder / 'inputs.txt'}", *arguments],
        cwd=FOLDER,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("board,kernels", BOARDS)
def test_outputs_are_those_of_the_wheel(network, board, kernels, tmp_path):
    folder, samples = network
    contents = (folder / "network.tflite").read_bytes()
    model = flatbuffer.read(contents)
    kinds = {flatbuffer.type_name(tensor) for tensor in model.subgraphs[0].tensors}
    assert {"INT8", "INT4"} <= kinds
    assert b"TFLM_DECODE" in {code.customCode for code in model.operatorCodes}
    result = make(network, board, kernels, tmp_path, "run")
    assert result.returncode == 0, result.stderr[-4000:]
    outputs = np.loadtxt(tmp_path / "outputs.txt", dtype=np.float32)
    (expected,) = tflite_micro.run(contents, [samples]).outputs
    assert len(np.unique(expected, axis=0)) > SAMPLES / 2  # Not the same for all inputs.
    np.testing.assert_array_equal(outputs, expected.reshape(SAMPLES, -1))
    counts = [int(n) for n in re.findall(r"^(\d+) instructions\.$", result.stderr, re.MULTILINE)]
    assert len(counts) == SAMPLES
    # More than a tenth of an instruction for each multiplication, and less than a hundred.
    macs = 8 * 8 * 24 * 8 * 9 + 8 * 8 * 24 * 9 + 3 * 3 * 24 * 24 * 9 * 2
    assert all(macs / 10 < count < 100 * macs for count in counts)


@pytest.mark.parametrize("board", ["mps2-an386", "mps3-an547"])
def test_instructions_are_counted_one_by_one(network, board, tmp_path):
    (tmp_path / "loops.cc").write_text(LOOPS)
    program = f"PROGRAM={tmp_path / 'loops.cc'}"
    result = make(network, board, "cmsis_nn", tmp_path, program, "run")
    assert result.returncode == 0, result.stderr[-4000:]
    counted = [int(line) for line in (tmp_path / "outputs.txt").read_text().split()]
    # The last one is beyond what the counter of ticks holds.
    assert counted == [2 * passes for passes in (2, 3, 1000, 1001, 1000003, 800000000)]


def test_a_small_arena_is_named(network, tmp_path):
    result = make(network, "mps2-an386", "reference", tmp_path, "ARENA_BYTES=1024", "run")
    assert result.returncode != 0
    assert "1024 bytes of arena are not enough" in result.stderr


def test_size_counts_the_file_and_the_code(network, tmp_path):
    result = make(network, "mps2-an386", "cmsis_nn", tmp_path, "size")
    assert result.returncode == 0, result.stderr[-4000:]
    text, data, bss = (int(n) for n in result.stdout.splitlines()[1].split()[:3])
    size = (network[0] / "network.tflite").stat().st_size
    assert size + 30_000 < text + data < size + 120_000
    header = (network[0] / "network.h").read_text()
    (arena,) = re.findall(r"kArenaBytes = (\d+)", header)
    assert int(arena) < bss < int(arena) + 4096


def test_unknown_boards_and_kernels_are_refused(network, tmp_path):
    result = make(network, "mps2-an999", "cmsis_nn", tmp_path, "run")
    assert result.returncode != 0 and "BOARD=mps2-an999 is not known" in result.stderr
    result = make(network, "mps2-an386", "fast", tmp_path, "run")
    assert result.returncode != 0 and "KERNELS=fast is not known" in result.stderr
