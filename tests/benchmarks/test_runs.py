"""Each method runs once, for a few steps, on digits of mixed quality."""

import dataclasses

import numpy as np
import pytest
from helpers.small_networks import KINDS, network
from study import datasets, results, runs, scoring

import dqmq_tf

STEPS = 6


def executed(bench, method, **fields):
    fields = {"kind": "mean_bit_width", "budget": 6.0, "steps": STEPS, **fields}
    return bench.execute(runs.Run(network="resnet8", method=method, **fields))


@pytest.mark.parametrize("method", ["lsq", "pact"])
def test_the_cost_of_uniform_methods_follows_from_their_bits(bench, method):
    record = executed(bench, method, bits=(3, 4))
    assert set(record["scores"]) == set(datasets.TESTS)
    assert record["mean_bits"]["conv_1:kernel"] == 3
    assert 0 < record["bit_ops"] <= 36 * record["macs"]
    cells = record["scores"]["a"]["cells"]
    assert sum(images for images, _, _ in cells.values()) == 500
    right = sum(right for _, right, _ in cells.values())
    assert record["scores"]["a"]["accuracy"] == pytest.approx(right / 500)


@pytest.mark.parametrize("method", results.HAWQ)
def test_the_integer_program_meets_the_budget(bench, method):
    record = executed(bench, method)
    assert 0.8 * 36 <= record["bit_ops"] / record["macs"] <= 36
    if method == "hawq":
        assert record["mean_bits"]["conv_1:kernel"] == record["mean_bits"]["relu_0"]


def test_dqmq_records_bits_by_kind_and_accuracies_with_shuffled_quality(bench):
    record = executed(bench, "dqmq", budget=3.0)
    assert set(record["bits_by_kind"]) == {"clean", *KINDS}
    for name in ("shuffled", "shuffled_bits"):
        assert set(record[name]) == set(datasets.TESTS)
    scores = record["scores"]
    assert scores["a"]["cost"] / record["macs"] == pytest.approx(9.0, rel=0.05)


def test_static_bits_cost_the_same_for_every_image(bench):
    record = executed(bench, "static", budget=4.0, tuning=True)
    assert set(record["scores"]) == {"validation"}
    cells = record["scores"]["validation"]["cells"].values()
    assert len({cost for *_, cost in cells}) == 1
    assert record["scores"]["validation"]["cost"] <= 16 * record["macs"]


@pytest.mark.parametrize(("ablation", "averaged"), [(None, False), (results.SAME_TRAINING, True)])
def test_published_methods_use_moving_averages_as_batch_statistics(bench, ablation, averaged):
    at = {"kind": "mean_bit_width", "budget": 6.0, "bits": (3, 4), "steps": STEPS}
    run = runs.Run(network="resnet8", method="lsq", ablation=ablation, **at)
    data = bench.mixtures.training(run.seed, run.steps)
    trained, _ = runs._network(bench, run, bench.start("resnet8"), data)
    assert bool(trained._parts.norms) == averaged


@pytest.mark.parametrize(("method", "ablation"), [("lsq", None), ("hawq", results.SAME_TRAINING)])
def test_files_are_scored_in_litert(bench, method, ablation):
    record = executed(bench, method, kind="download_bytes", budget=6_500, ablation=ablation)
    assert record["download_bytes"] <= 6_500
    assert 2 <= record["mean_bits"]["conv_1:kernel"] < 8
    assert record["scores"]["a"]["accuracy"] > 0.2


@pytest.fixture(scope="module")
def deciding():
    """A model whose bits differ between 500 images, and these images."""
    images = np.random.default_rng(0).random((500, 16, 16, 3)).astype("float32")
    images *= np.linspace(0, 1, 500, dtype="float32")[:, None, None, None]
    model = dqmq_tf.quantize_model(
        network(), target="simulation", budget=dqmq_tf.Budget(mean_bit_width=4)
    )
    model.calibrate(images)
    shape = model._parts.policy.direction.shape
    model._parts.policy.direction.assign(np.random.default_rng(1).normal(size=shape) * 3)
    return model, images


@pytest.mark.parametrize("bits_alone", [True, False])
def test_shuffled_decisions_come_from_other_images(deciding, bits_alone):
    model, images = deciding

    def found():
        z = model._parts.encoder(images)
        return np.asarray(model._parts.policy(z)["activations"])[..., 0], np.asarray(z)

    own, own_z = found()
    with scoring.shuffled(model, bits_alone):
        bits, z = found()
        told = np.asarray(model._parts.policy(model._parts.encoder(images))["embedding"])
    assert (bits != own).any(axis=1).mean() > 0.5
    assert (np.sort(bits, axis=0) == np.sort(own, axis=0)).all()
    np.testing.assert_array_equal(told, z)
    assert (z == own_z).all() == bits_alone
    again, again_z = found()
    np.testing.assert_array_equal(again, own)
    np.testing.assert_array_equal(again_z, own_z)


# What ablations name that is not a term of the objective.
OTHERS = {
    "random_encoder", "sample_bits", "normalization", "distillation", "priced_start", "slow_search",
}  # fmt: skip


def test_an_ablation_changes_the_part_that_it_names():
    plain = dataclasses.asdict(runs._terms(None))
    for name in runs.ABLATIONS:
        found = dataclasses.asdict(runs._terms(name))
        changed = [key for key in plain if plain[key] != found[key]]
        named = name.removeprefix("no_").split("_and_")
        assert changed == [part for part in named if part not in OTHERS]


def test_without_its_start_all_bits_are_equal_at_first(bench, monkeypatch):
    begun = {}

    def note(model, *args):
        begun["means"] = model.get_layer("bit_width_policy").mean.numpy()
        begun["rate"] = model.config.policy_learning_rate
        raise InterruptedError

    monkeypatch.setattr(runs.float_networks, "train", note)
    for ablation in (None, "no_priced_start_and_slow_search_and_pathwise"):
        with pytest.raises(InterruptedError):
            executed(bench, "dqmq", budget=4.5, ablation=ablation)
        assert (np.ptp(begun["means"]) == 0) == (ablation is not None)
        assert (begun["rate"] == 0.02) == (ablation is not None)
    assert (begun["means"] == 4.5).all()
