import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dqmq_tf.lowering.stored_weights import DEQUANTIZED, StoredWeights
from dqmq_tf.precision import WeightPrecision


def weights(shape, axes, seed=0):
    """Weights with a step for each index of some axes."""
    generator = np.random.default_rng(seed)
    return StoredWeights.of(
        "path",
        "kernel",
        DEQUANTIZED,
        WeightPrecision(
            integers=generator.integers(-31, 32, shape),
            step=generator.uniform(0.01, 1, [n if i in axes else 1 for i, n in enumerate(shape)]),
            bit_width=6,
        ),
    )


def restored(integers, scales, axis):
    shape = [1] * integers.ndim
    shape[axis] = -1
    return integers * scales.reshape(shape)


@st.composite
def laid_out(draw):
    """A variable's shape, its axis of channels or None, and a permutation and reshape of it."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    channels = draw(st.sampled_from([None, *range(len(shape))]))
    order = draw(st.permutations(range(len(shape))))
    parts = [[shape[axis]] for axis in order]
    place = None if channels is None else order.index(channels)
    # Axes are joined, or get one of size 1 beside them; that of the channels stays whole.
    joined = [parts[0]]
    for i, part in enumerate(parts[1:], 1):
        whole = place in (i, i - 1)
        if not whole and draw(st.booleans()):
            joined[-1] = [joined[-1][0] * part[0]]
        else:
            joined.append(part)
    result = []
    for (size,) in joined:
        result += [1] * draw(st.integers(0, 1)) + [size]
    return shape, channels, tuple(order), tuple(result)


@given(laid_out(), st.integers(0, 100))
@settings(max_examples=150, deadline=None)
def test_the_right_layout_is_among_them(case, seed):
    shape, channels, order, result = case
    held = weights(shape, () if channels is None else (channels,), seed)
    expected = held.values.transpose(order).reshape(result)
    found = list(held.layouts(result))
    assert any(np.array_equal(restored(*layout), expected) for layout in found)
    for integers, scales, axis in found:
        assert integers.dtype == np.int8 and integers.shape == result
        assert scales.dtype == np.float32 and len(scales) in (1, result[axis])


def test_steps_along_two_axes_are_left_out():
    held = weights((2, 3, 4), (0, 2))
    # Only where both axes become one, which (2, 4) of 12 rows cannot.
    assert not list(held.layouts((2, 3, 4)))
    joined = list(held.layouts((3, 8)))
    assert joined
    expected = held.values.transpose(1, 0, 2).reshape(3, 8)
    assert any(np.array_equal(restored(*layout), expected) for layout in joined)
    for _, scales, axis in joined:
        assert axis == 1 and len(scales) == 8


def test_one_step_for_the_whole_tensor():
    held = weights((3, 4), ())
    found = list(held.layouts((4, 3)))
    assert len(found) == 2
    for integers, scales, axis in found:
        np.testing.assert_array_equal(scales, held.scales)
        assert axis == 0 and integers.shape == (4, 3)


def test_another_size_has_no_layout():
    assert not list(weights((3, 4), (1,)).layouts((3, 5)))


def test_values_are_steps_times_integers():
    held = weights((3, 4), (1,))
    np.testing.assert_array_equal(held.values, held.integers * held.steps)
    assert held.values.dtype == np.float32
    assert held.scales.shape == (4,) and held.integers.dtype == np.int8
