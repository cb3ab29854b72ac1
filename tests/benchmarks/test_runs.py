"""Each method once, for a few steps, on digits of mixed quality."""

import dataclasses

import numpy as np
import pytest
from small_networks import KINDS
from study import mixtures, results, runs, scoring

STEPS = 6


def executed(bench, method, **fields):
    fields = {"kind": "mean_bit_width", "budget": 6.0, "steps": STEPS, **fields}
    return bench.execute(runs.Run(network="resnet8", method=method, **fields))


@pytest.mark.parametrize("method", ["lsq", "pact"])
def test_uniform_methods_cost_what_their_bits_say(bench, method):
    record = executed(bench, method, bits=(3, 4))
    assert set(record["scores"]) == set(mixtures.TESTS)
    assert record["mean_bits"]["conv_1:kernel"] == 3
    assert 0 < record["bit_ops"] <= 36 * record["macs"]
    cells = record["scores"]["a"]["cells"]
    assert sum(images for images, _, _ in cells.values()) == 500
    right = sum(right for _, right, _ in cells.values())
    assert record["scores"]["a"]["accuracy"] == pytest.approx(right / 500)


@pytest.mark.parametrize("method", results.HAWQ)
def test_integer_program_keeps_the_budget(bench, method):
    record = executed(bench, method)
    assert 0.8 * 36 <= record["bit_ops"] / record["macs"] <= 36
    if method == "hawq":
        assert record["mean_bits"]["conv_1:kernel"] == record["mean_bits"]["relu_0"]


def test_dqmq_tells_bits_by_kind_and_what_shuffling_does(bench):
    record = executed(bench, "dqmq", budget=3.0)
    assert set(record["bits_by_kind"]) == {"clean", *KINDS}
    assert set(record["shuffled"]) == set(mixtures.TESTS)
    scores = record["scores"]
    assert scores["a"]["cost"] / record["macs"] == pytest.approx(9.0, rel=0.05)


def test_static_bits_cost_the_same_for_every_image(bench):
    record = executed(bench, "static", budget=4.0, tuning=True)
    assert set(record["scores"]) == {"validation"}
    cells = record["scores"]["validation"]["cells"].values()
    assert len({cost for *_, cost in cells}) == 1
    assert record["scores"]["validation"]["cost"] <= 16 * record["macs"]


@pytest.mark.parametrize("method", ["lsq", "hawq"])
def test_files_are_scored_in_litert(bench, method):
    record = executed(bench, method, kind="download_bytes", budget=6_500)
    assert record["download_bytes"] <= 6_500
    assert 2 <= record["mean_bits"]["conv_1:kernel"] < 8
    assert record["scores"]["a"]["accuracy"] > 0.2


def test_shuffled_decisions_are_those_of_other_images():
    class Model:
        @staticmethod
        def encoder():
            raise AssertionError

    model = Model()
    model.encoder = type("Encoder", (), {"call": staticmethod(lambda x: x)})()
    before = model.encoder.call
    x = np.arange(500.0)
    with scoring.shuffled(model):
        found = np.asarray(model.encoder.call(x))
    assert (np.sort(found) == x).all() and (found != x).mean() > 0.9
    assert model.encoder.call is before


def test_ablations_change_what_they_name():
    plain = dataclasses.asdict(runs._terms(None))
    for name in runs.ABLATIONS[:5]:
        found = dataclasses.asdict(runs._terms(name))
        assert [key for key in plain if plain[key] != found[key]] == [name.removeprefix("no_")]
