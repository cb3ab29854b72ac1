import dataclasses
import io
import json

import pytest
import rich.console

from dqmq_tf.export import AdaptiveVerificationReport, RuntimeReport, VerificationReport


def row(runtime, agreement=1.0, mean=0.5, arena=None):
    return RuntimeReport(
        runtime=runtime,
        version="ai-edge-litert 2.3.0",
        samples=1000,
        top1_agreement=agreement,
        clear=900,
        clear_agreement=1.0,
        largest_quanta=12.0,
        mean_quanta=mean,
        latency_ms=123.4,
        arena_bytes=arena,
    )


MISSING = RuntimeReport(runtime="tflite-runtime", note="not installed: set DQMQ_X to a Python")


@pytest.fixture
def report():
    rows = (MISSING, row("litert-xnnpack", 0.99, 0.25), row("litert-reference", 0.97, 0.75))
    return VerificationReport(
        samples=1000, classification=True, checked_numbers=78430, different_numbers=0, rows=rows
    )


def shown(report, width=80):
    file = io.StringIO()
    rich.console.Console(file=file, width=width).print(report)
    return file.getvalue()


def test_the_worst_of_those_that_ran_counts(report):
    assert report.top1_agreement == 0.97
    assert report.mean_quanta == 0.75
    assert report.primary.runtime == "litert-xnnpack"
    assert report.row("litert-reference").top1_agreement == 0.97
    with pytest.raises(KeyError, match="tflite-micro"):
        report.row("tflite-micro")


def test_what_is_missing_does_not_read_as_a_pass(report):
    (line,) = [line for line in shown(report).splitlines() if line.startswith("tflite-runtime:")]
    assert line == "tflite-runtime: not installed: set DQMQ_X to a Python"
    (line,) = [line for line in shown(report).splitlines() if line.startswith(" tflite-runtime")]
    assert line.split() == ["tflite-runtime", "not", "run", "-", "-", "-", "-", "-"]
    assert not MISSING.ran and json.loads(report.to_json())["rows"][0]["top1_agreement"] is None


def test_table_fits_80_columns(report):
    widest = dataclasses.replace(
        report, rows=(row("litert-reference", arena=12_345_678), *report.rows)
    )
    text = shown(widest)
    assert "…" not in text and all(len(line) <= 80 for line in text.splitlines())
    for cell in ("12,345,678", "litert-reference", "99.00", "123", "0 of 78,430 numbers"):
        assert cell in text


def test_no_column_without_use(report):
    assert "arena" not in shown(report)
    assert "top-1" not in shown(dataclasses.replace(report, classification=False))


def test_no_share_of_nothing(report):
    undecided = dataclasses.replace(row("litert-xnnpack"), clear=0)
    text = shown(dataclasses.replace(report, rows=(undecided,)))
    (line,) = [line for line in text.splitlines() if line.startswith(" litert-xnnpack")]
    assert line.split()[3] == "-"


def test_each_table_of_an_adaptive_file_says_whose_it_is(report):
    lines = shown(AdaptiveVerificationReport(profiles=(report, report))).splitlines()
    places = [lines.index(f"Precision profile {number}") for number in range(2)]
    assert all("Verified" in lines[place + 1] for place in places)
