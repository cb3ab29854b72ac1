import pytest
from helpers.small_networks import compiled, network, training_data
from study import assignments


@pytest.fixture(scope="module")
def costs():
    return assignments.cost_model(network())


def test_uniform_bits_leave_the_first_and_last_layer_at_eight_bits(costs):
    bits = assignments.uniform(costs, 3, 2)
    assert bits["conv_0:kernel"] == bits["classes:kernel"] == 8
    assert bits["image"] == bits["pool"] == 8
    assert bits["conv_1:kernel"] == bits["conv_2:kernel"] == 3
    assert bits["relu_0"] == bits["relu_1"] == 2


def test_the_cost_counts_every_layer(costs):
    bits = assignments.uniform(costs, 3, 2)
    macs = dict(zip((point.name for point in costs.weights), costs.macs))
    ends = macs["conv_0:kernel"] + macs["classes:kernel"]
    inner = macs["conv_1:kernel"] + macs["conv_2:kernel"]
    expected = ((64 * ends + 6 * inner) / (ends + inner)) ** 0.5
    assert assignments.cost(costs, bits) == pytest.approx(expected)


def test_a_fixed_network_trains_at_the_assigned_bits(costs):
    bits = assignments.uniform(costs, 4, 3)
    fixed = assignments.fixed(network(), bits, "simulation", seed=0)
    compiled(fixed).fit(training_data(1).take(3), verbose=0)
    images = next(iter(training_data(1)))[0]
    for point, width in bits.items():
        if point in fixed.decision_points:
            assert set(fixed.decisions(images)[point]) == {width}
        else:
            index = [p.name for p in fixed._parts.costs.activations].index(point)
            assert fixed._parts.costs.activations[index].bit_widths == (width,)
    assert fixed._parts.policy.bits_vary_by == "static"
