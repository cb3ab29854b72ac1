"""Checks the tables of a summary."""

import dataclasses
import io

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf

import dqmq_tf
from dqmq_tf.report import tables
from dqmq_tf.report.summary import summary


@pytest.fixture(scope="module")
def report():
    """The summary of a small model on clean inputs and inputs of one kind."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Conv2D(4, 3, strides=2, activation="relu", name="stem"),
            keras.layers.Conv2D(8, 3, activation="relu", name="middle"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, name="classes"),
        ]
    )
    qmodel = dqmq_tf.quantize_model(model, target="simulation")
    images = np.random.default_rng(0).uniform(size=(8, 16, 16, 3)).astype("float32")
    qmodel.calibrate(images)
    drawn = {"kind": [0, 1] * 4, "severity": [0, 3] * 4}
    return summary(qmodel, tf.data.Dataset.from_tensor_slices((images, np.arange(8), drawn)))


class TestTables:
    def render(self, report, ascii_only=False):
        console = rich.console.Console(file=io.StringIO(), width=120)
        for part in tables.tables(report, ascii_only):
            console.print(part)
        return console.file.getvalue()

    def test_histogram_marks_the_likely_candidates(self, report):
        spike = dataclasses.replace(
            report.layers[0].distribution, bit_widths=(2, 4, 8), probabilities=(0.0, 0.5, 0.5)
        )
        layers = tuple(dataclasses.replace(row, distribution=spike) for row in report.layers)
        changed = dataclasses.replace(report, layers=layers)
        assert "·▄▄" in self.render(changed)
        assert "p(2-8)" in self.render(changed)
        assert "044" in self.render(changed, ascii_only=True)

    def test_one_candidate_and_candidates_that_differ(self, report):
        fixed = dataclasses.replace(
            report.layers[0].distribution, bit_widths=(8,), probabilities=(1.0,)
        )
        row = dataclasses.replace(report.layers[0], distribution=fixed)
        assert "p(8-8)" in self.render(dataclasses.replace(report, layers=(row,)))
        mixed = dataclasses.replace(report, layers=(row, report.layers[1]))
        assert "p(bits)" in self.render(mixed)

    def test_total_row_sums_the_layers(self, report):
        line = next(x for x in self.render(report).splitlines() if x.strip().startswith("total"))
        assert f"{report.total('download_bytes'):,.0f}" in line

    def test_labels_of_a_layer_with_several_variables_name_the_variable(self, report):
        first, *rest = report.layers
        same_layer = [
            dataclasses.replace(first, name=f"gru:{v}") for v in ("kernel", "recurrent_kernel")
        ]
        changed = dataclasses.replace(report, layers=(*same_layer, *rest))
        assert tables.layer_labels(changed) == [
            "gru:kernel",
            "gru:recurrent_kernel",
            "middle",
            "classes",
        ]

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"bits_vary_by": "static"}, "static: the same"),
            ({"bits_vary_by": "profile", "profiles": 3}, "per profile: 3 precision profiles"),
            (
                {"bits_vary_by": "profile", "profiles": 2, "phase": "search"},
                "2 groups of similar quality",
            ),
            ({"bits_vary_by": "sample", "profiles": 1}, "weight bits: the same for every input"),
        ],
    )
    def test_meaning_says_what_bits_depend_on(self, report, fields, words):
        fields = {"phase": "frozen", **fields}
        assert words in tables.meaning(dataclasses.replace(report, **fields))
