import pytest

from dqmq_tf import targets


@pytest.mark.parametrize("name", targets.TARGETS)
def test_targets_are_consistent(name):
    target = targets.get(name)
    assert target.name == name
    assert targets.get(target) is target
    for bits in (target.weight_bits, target.activation_bits):
        assert list(bits) == sorted(set(bits))
        assert set(bits) <= set(range(2, 9))
    assert bool(target.runtimes) == target.deployable
    assert target.int4_ops <= {"conv", "depthwise", "dense"}
    # Every runtime computes on int8 activations; fewer bits exist in simulation only.
    assert target.activation_bits == (8,) or not target.deployable


def test_unknown_target_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="'iphone'.*android, android_small, microcontroller"):
        targets.get("iphone")


@pytest.mark.parametrize(
    "name,op_kind,bits,container",
    [
        ("android", "conv", 2, "INT8"),
        ("android_small", "conv", 4, "INT4"),
        ("android_small", "dense", 2, "INT4"),
        ("android_small", "conv", 5, "INT8"),
        ("android_small", "other", 4, "INT8"),
        ("microcontroller", "depthwise", 3, "INT4"),
        ("microcontroller", "dense", 4, "INT8"),
        ("simulation", "conv", 2, "INT8"),
    ],
)
def test_containers(name, op_kind, bits, container):
    target = targets.get(name)
    assert target.container(op_kind, bits) == container
    assert target.stored_bits(op_kind, bits) == int(container[3:])


def test_fewer_bits_make_smaller_files_only_where_there_are_small_containers():
    varies = {name for name, target in targets.TARGETS.items() if target.size_varies}
    assert varies == {"android_small", "microcontroller"}
