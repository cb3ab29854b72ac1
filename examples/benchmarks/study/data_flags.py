"""The flags that name the data and the network of benchmarks of accuracy."""

from absl import flags

DATA_DIR = flags.DEFINE_string(
    "data_dir", "../shared/data/tfds", "Folder of prepared tensorflow-datasets."
)
RESNET = flags.DEFINE_string(
    "resnet",
    "../shared/models/mlperf_tiny/pretrainedResnet.h5",
    "MLPerf Tiny's trained ResNet-8 (.h5).",
)
