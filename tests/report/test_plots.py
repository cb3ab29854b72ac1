"""Checks what the figure of a summary shows, and that nothing in it overlaps."""

import dataclasses
import sys

import keras
import numpy as np
import pytest

import dqmq_tf
from dqmq_tf import quality
from dqmq_tf.report.rows import BitStatistics, FifthRow, QualityRow
from dqmq_tf.report.summary import summary


@pytest.fixture(scope="module")
def report():
    """The summary of a model with bits per sample, on clean images and two kinds."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3), name="image")
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu", name="stem")(inputs)
    x = keras.layers.Conv2D(8, 3, activation="relu", name="middle")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(10, name="classes")(x), name="small")
    qmodel = dqmq_tf.quantize_model(model, target="simulation")
    data = quality.mixed_quality(
        quality.digits("test", size=16).take(64).batch(64),
        kinds=("gaussian_noise", "jpeg"), severity=(1, 3), with_quality=True,
    )  # fmt: skip
    data = data.cache()
    qmodel.calibrate(next(iter(data))[0].numpy())
    qmodel._parts.policy.direction.assign(
        np.random.default_rng(1).normal(size=qmodel._parts.policy.direction.shape)
    )
    return summary(qmodel, data)


@pytest.fixture(scope="module")
def large(report):
    """The same summary with 60 layers of long names, and all kinds and severities."""
    kinds = ("clean", *quality.KINDS)
    bits = BitStatistics(
        mean=4.0, least=2, most=8, by_kind={k: 2 + 0.3 * i for i, k in enumerate(kinds)}
    )
    layers = [
        dataclasses.replace(
            report.layers[0], name=f"backbone/stage_{i}/depthwise:kernel", input_bits=bits
        )
        for i in range(60)
    ]
    rows = [
        QualityRow(kind=kind, severity=severity, samples=9, accuracy=0.1 * severity, loss=None,
                   shuffled=None, weight_bits=3.0, activation_bits=4.0, bit_ops=1e6 * (1 + severity))
        for kind in kinds for severity in (range(1, 6) if kind != "clean" else [0])
    ]  # fmt: skip
    rows.append(dataclasses.replace(rows[0], kind="all", severity=None))
    return dataclasses.replace(report, layers=tuple(layers), qualities=tuple(rows))


def static(report):
    """Returns the same summary with static bits."""
    same = BitStatistics(mean=5.0, least=5, most=5, by_kind={})
    layers = tuple(dataclasses.replace(row, bits=same, input_bits=same) for row in report.layers)
    rows = tuple(dataclasses.replace(row, bit_ops=7e6) for row in report.qualities)
    return dataclasses.replace(
        report,
        bits_vary_by="static",
        phase="frozen",
        profiles=1,
        layers=layers,
        activations=(),
        qualities=rows,
    )


def boxes(figure, artists):
    figure.canvas.draw()
    return [artist.get_window_extent() for artist in artists]


class TestFigure:
    def test_panels_titles_and_units(self, report):
        weights, inputs, accuracy, cost = report.plot().axes[:-1]
        assert weights.get_title() == "Weight bits"
        assert [t.get_text() for t in weights.get_yticklabels()] == ["stem", "middle", "classes"]
        assert inputs.get_title() == "Bits of the layer's input"
        assert weights.get_xlabel() == inputs.get_xlabel() == "bits"
        assert accuracy.get_ylabel() == "top-1 accuracy (%)"
        assert "BitOPs per input" in cost.get_ylabel()
        assert "severity" in accuracy.get_xlabel()
        assert "inputs per point" in accuracy.get_title()

    def test_curves_are_the_rows(self, report):
        rows = [row for row in report.qualities if row.kind == "jpeg"]
        curves = {tuple(line.get_ydata()) for line in report.plot().axes[2].get_lines()}
        assert tuple(100 * row.accuracy for row in rows) in curves

    def test_bits_are_the_means_of_the_kinds(self, report):
        row = report.layers[1]
        assert len(set(row.input_bits.by_kind.values())) > 1
        marks = {float(np.ravel(line.get_xdata())[0]) for line in report.plot().axes[1].get_lines()}
        assert set(row.input_bits.by_kind.values()) <= marks

    def test_legend_gives_each_kind_a_look_of_its_own(self, large):
        legend = large.plot().axes[-1].get_legend()
        names = [text.get_text() for text in legend.get_texts()]
        assert {k.replace("_", " ") for k in ("clean", *quality.KINDS)} <= set(names)
        looks = [(h.get_color(), h.get_marker()) for h in legend.legend_handles]
        assert len(set(looks)) == len(looks)

    def test_nothing_overlaps(self, large):
        figure = large.plot()
        labels = boxes(figure, figure.axes[0].get_yticklabels())
        assert len(labels) == 60
        assert not any(a.overlaps(b) for a, b in zip(labels, labels[1:]))
        legend = boxes(figure, [figure.axes[-1].get_legend()])[0]
        panels = boxes(figure, figure.axes[:-1])
        assert not any(legend.overlaps(panel) for panel in panels)
        assert not any(a.overlaps(b) for a in panels for b in panels if a is not b)
        title = boxes(figure, [figure._suptitle])[0]
        assert not title.overlaps(legend)
        assert figure.bbox.x0 <= title.x0 and title.x1 <= figure.bbox.x1
        assert figure.bbox.x0 <= min(box.x0 for box in labels) and legend.x1 <= figure.bbox.x1

    def test_static_bits_have_no_panel_of_cost(self, report):
        axes = static(report).plot().axes[:-1]
        assert [a.get_title().split(",")[0] for a in axes] == ["Weight bits", "Accuracy"]
        assert "all inputs cost the same: 7.00M BitOPs" in axes[1].get_title()

    def test_without_data_there_are_bits_only(self, report):
        figure = dataclasses.replace(report, qualities=()).plot()
        titles = [axes.get_title() for axes in figure.axes[:-1]]
        assert titles == ["Weight bits", "Bits of the layer's input"]

    def test_the_bits_by_layer_alone_keep_the_legend_of_the_kinds(self, report):
        *panels, legend = report.plot(by="layer").axes
        assert [a.get_title() for a in panels] == ["Weight bits", "Bits of the layer's input"]
        names = {text.get_text() for text in legend.get_legend().get_texts()}
        assert {"clean", "gaussian noise", "jpeg"} <= names

    def test_the_figure_by_quality_has_the_mean_bits(self, report):
        accuracy, bits, cost = report.plot(by="quality").axes[:-1]
        assert bits.get_title() == "Bits of the layers' inputs"
        rows = [row for row in report.qualities if row.kind == "jpeg"]
        curves = {tuple(line.get_ydata()) for line in bits.get_lines()}
        assert tuple(row.activation_bits for row in rows) in curves
        with pytest.raises(
            ValueError, match="by='quality' needs a summary of data whose quality is known"
        ):
            dataclasses.replace(report, qualities=()).plot(by="quality")
        with pytest.raises(ValueError, match="by='kind' must be"):
            report.plot(by="kind")

    def test_without_kinds_there_are_curves_over_fifths(self, report):
        quality_rows = [row for row in report.qualities if row.severity is None]
        fifths = [
            FifthRow(measure=name, fifth=i, least=0.0, most=1.0, samples=9, accuracy=0.1 * i, loss=None,
                     shuffled=0.05 * i, weight_bits=3.0, activation_bits=2.0 + i, bit_ops=1e6)
            for name in ("brightness", "focus") for i in range(1, 6)
        ]  # fmt: skip
        changed = dataclasses.replace(report, qualities=tuple(quality_rows), fifths=tuple(fifths))
        accuracy, bits, legend = changed.plot(by="quality").axes
        assert accuracy.get_xlabel() == "fifth of the inputs, lowest first"
        curves = [[round(y) for y in line.get_ydata()] for line in accuracy.get_lines()]
        assert curves == 2 * [[10, 20, 30, 40, 50], [5, 10, 15, 20, 25]]
        assert list(bits.get_lines()[0].get_ydata()) == [3, 4, 5, 6, 7]
        names = [text.get_text() for text in legend.get_legend().get_texts()]
        assert names[-3:] == ["brightness", "focus", "with the quality\nof other inputs"]

    def test_file_is_written(self, report, tmp_path):
        report.plot(tmp_path / "bits.png")
        assert (tmp_path / "bits.png").read_bytes().startswith(b"\x89PNG")

    def test_a_missing_matplotlib_is_reported_with_the_extra_to_install(self, report, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ImportError, match=r'pip install "\.\[plot\]" in the checkout'):
            report.plot()
