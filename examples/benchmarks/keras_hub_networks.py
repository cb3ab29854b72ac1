"""Tests which networks of KerasHub train, are saved, and run on integer kernels in a file.

KerasHub writes its networks as classes: blocks, encoders and whole tasks. Each network here is a small
one with random weights. It is quantized for `--target`, trained for two steps, saved, loaded, converted
and compared with its file. The table names what runs in floating point. Each network runs in its own
process. KerasHub is not among the requirements of the package: `pip install keras-hub`.

    python examples/benchmarks/keras_hub_networks.py \\
        --output=examples/benchmarks/results/keras_hub_networks.json
"""

import collections
import json
import pathlib
import sys
import tempfile
import time

import own_process
import rich.table
from absl import app, flags

_TARGET = flags.DEFINE_string("target", "android", "Deployment target (see dqmq_tf.targets).")
_NETWORKS = flags.DEFINE_list("networks", [], "Networks to run. Empty for all.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")

_ONLY = flags.DEFINE_string("only", None, "The one network to run in this process.")

_SIDE, _CLASSES, _IMAGES = 32, 5, 32
# Two blocks of convolutions, or two layers of attention, as arguments of a backbone.
_TWO = {
    "MobileNet": {
        "stackwise_expansion": [[40, 56], [64, 72]],
        "stackwise_num_blocks": [2, 2],
        "stackwise_num_filters": [[16, 16], [24, 24]],
        "stackwise_kernel_size": [[3, 3], [5, 5]],
        "stackwise_num_strides": [[2, 1], [2, 1]],
        "stackwise_se_ratio": [[None, None], [0.25, 0.25]],
        "stackwise_activation": [["relu", "relu"], ["hard_swish", "hard_swish"]],
        "stackwise_padding": [[1, 1], [2, 2]],
        "output_num_filters": 48,
        "input_activation": "hard_swish",
        "output_activation": "hard_swish",
        "input_num_filters": 16,
        "depthwise_filters": 8,
        "depthwise_stride": 2,
        "depthwise_residual": False,
        "squeeze_and_excite": 0.5,
        "last_layer_filter": 32,
    },
    "ResNet": {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 128],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_strides": [1, 2],
        "block_type": "basic_block",
    },
    "EfficientNet": {
        "stackwise_kernel_sizes": [3, 3],
        "stackwise_num_repeats": [1, 2],
        "stackwise_input_filters": [8, 16],
        "stackwise_output_filters": [16, 24],
        "stackwise_expansion_ratios": [1, 4],
        "stackwise_squeeze_and_excite_ratios": [0.0, 0.25],
        "stackwise_strides": [1, 2],
        "stackwise_block_types": ["fused", "unfused"],
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
    },
    "DenseNet": {"stackwise_num_repeats": [1, 2], "growth_rate": 8},
    "HGNetV2": {
        "depths": [1, 2],
        "embedding_size": 16,
        "hidden_sizes": [16, 32],
        "stem_channels": [3, 8, 8],
        "hidden_act": "relu",
        "use_learnable_affine_block": False,
        "stackwise_stage_filters": [(8, 8, 16, 1, 1, 3), (16, 8, 32, 1, 2, 3)],
        "apply_downsample": [False, True],
        "use_lightweight_conv_block": [False, True],
    },
    "Xception": {
        "stackwise_conv_filters": [[8, 16], [16, 16]],
        "stackwise_pooling": [True, False],
    },
    "VGG": {"stackwise_num_repeats": [1, 1], "stackwise_num_filters": [8, 16]},
    "MiT": {
        "layerwise_depths": [1, 1],
        "hidden_dims": [8, 16],
        "num_layers": 2,
        "layerwise_num_heads": [1, 2],
        "layerwise_sr_ratios": [2, 1],
        "max_drop_path_rate": 0.1,
        "layerwise_patch_sizes": [7, 3],
        "layerwise_strides": [4, 2],
    },
    "DeiT": {
        "patch_size": 8,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 16,
        "intermediate_dim": 32,
    },
    "ViT": {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32},
    "SwinTransformer": {"embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4},
}
# What each backbone and classifier wants beside these.
_BACKBONE = {"EfficientNet": {"input_shape": (_SIDE, _SIDE, 3)}}
_CLASSIFIER = {"HGNetV2": {"preprocessor": None}}


def network(name):
    """Returns a small classifier with random weights."""
    import keras
    import keras_hub

    keras.utils.set_random_seed(0)
    backbone = getattr(keras_hub.models, f"{name}Backbone")
    classifier = getattr(keras_hub.models, f"{name}ImageClassifier")
    shape = _BACKBONE.get(name, {"image_shape": (_SIDE, _SIDE, 3)})
    body = backbone(**shape, **_TWO[name])
    return classifier(backbone=body, num_classes=_CLASSES, **_CLASSIFIER.get(name, {}))


def measure(name, target):
    """Runs one network and returns a dictionary of results."""
    found = {"network": name, "target": target, "stage": "build"}
    started = time.process_time()
    try:
        import keras
        import numpy as np

        import dqmq_tf

        model = network(name)
        random = np.random.default_rng(0)
        images = random.uniform(0, 255, (_IMAGES, _SIDE, _SIDE, 3)).astype("float32")
        labels = random.integers(0, _CLASSES, _IMAGES)
        found["stage"] = "quantize"
        qmodel = dqmq_tf.quantize_model(model, target=target)
        found["decision_points"] = len(qmodel.decision_points)
        found["stage"] = "fit"
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        qmodel.compile(keras.optimizers.Adam(global_clipnorm=1.0), loss)
        qmodel.fit(images, labels, batch_size=_IMAGES // 2, epochs=2, verbose=0)
        found["stage"] = "save"
        with tempfile.TemporaryDirectory() as folder:
            qmodel.save(f"{folder}/model.keras")
            loaded = keras.models.load_model(f"{folder}/model.keras")
            same = np.array_equal(*(m.predict(images, verbose=0) for m in (qmodel, loaded)))
            found["stage"] = "convert" if same else "loaded model predicts something else"
            report = dqmq_tf.convert(qmodel, f"{folder}/model.tflite", data=images)
        layers = {node.path: type(node.layer).__name__ for node in qmodel._parts.graph.nodes}
        found["float_layers"] = dict(collections.Counter(layers[p] for p in report.float_layers))
        found["layers"] = len(layers)
        found["different_numbers"] = report.verification.different_numbers
        found["stage"] = "passed" if same else found["stage"]
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return {**found, "cpu_seconds": round(time.process_time() - started, 1)}


def table_of(rows):
    """Returns the results as a table."""
    columns = ("network", "result", "layers", "in floating point", "numbers that differ")
    table = rich.table.Table(*columns, title="KerasHub")
    for row in rows:
        floats = [f"{count} {kind}" for kind, count in row.get("float_layers", {}).items()]
        texts = (row.get("error", row["stage"]), row.get("layers", ""), ", ".join(floats))
        table.add_row(row["network"], *map(str, texts), str(row.get("different_numbers", "")))
    return table


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    if _ONLY.value:
        print(json.dumps(measure(_ONLY.value, _TARGET.value)))
        return
    rows = []
    for name in _NETWORKS.value or _TWO:
        command = [sys.executable, __file__, f"--only={name}", f"--target={_TARGET.value}"]
        row = own_process.json_of(command)
        rows.append(row)
        print(row, flush=True)
        if _OUTPUT.value:
            pathlib.Path(_OUTPUT.value).write_text(json.dumps(rows, indent=2) + "\n")
    rich.print(table_of(rows))


if __name__ == "__main__":
    app.run(main)
