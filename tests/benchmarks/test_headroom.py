"""Headroom on a small network that is really trained."""

import numpy as np
import pytest
from study import headroom, runs


@pytest.fixture(scope="module")
def trained(bench):
    run = runs.Run(network="resnet8", method="dqmq", kind="mean_bit_width", budget=3.0, steps=6)
    network, _, _ = runs.train(bench, run, bench.start("resnet8"))
    return run, network


def test_bits_that_are_forced_are_those_that_run(bench, trained):
    _, network = trained
    images = bench.mixtures.held_out().first(100)[0]
    count = len(network.costs.decided)
    bits = network.decisions(images).bits[:, :count]
    predict = headroom.forced(network)
    np.testing.assert_allclose(predict(images, bits), network(images), atol=1e-5)
    few = predict(images, np.full(count, 2.0))
    assert np.abs(few - predict(images, np.full(count, 8.0))).max() > 0.05
    # The network decides for itself again.
    np.testing.assert_allclose(network(images), predict(images, bits), atol=1e-5)


def test_added_losses_are_measured_one_point_at_a_time(bench, trained):
    _, network = trained
    x, y = bench.mixtures.held_out().first(100)
    base = np.full(len(network.costs.decided), 8.0)
    candidates = np.full((len(base), 2), np.nan)
    candidates[0, 0], candidates[1] = 8.0, (2.0, 8.0)
    predict = headroom.forced(network)
    added = headroom.added_losses(predict, x, y, base, candidates)
    assert (added[:, 0, 0] == 0).all() and np.isinf(added[:, 2:]).all()
    lowered = np.where(np.arange(len(base)) == 1, 2.0, base)
    change = headroom.losses(predict, x, y, lowered) - headroom.losses(predict, x, y, base)
    np.testing.assert_allclose(added[:, 1, 0], change, atol=1e-5)


def test_all_ways_keep_the_policys_cost_and_knowing_labels_is_a_bound(bench):
    run = runs.Run(network="resnet8", method="dqmq", kind="mean_bit_width", budget=3.0, steps=6)
    record = headroom.measure(bench, run, reach=2)
    scores = record["scores"]
    assert set(record["reaches"].values()) <= {1, 2}
    assert set(scores) == {"held out", "a", "d"}
    for rows in scores.values():
        assert all(row["bits"] <= rows["policy"]["bits"] + 1e-6 for row in rows.values())
    bound = scores["held out"]
    assert bound["label"]["accuracy"] >= max(row["accuracy"] for row in bound.values())
