"""Traffic signs: their batches, and the fifths by which a network is scored."""

import numpy as np
import pytest
from study import signs


@pytest.fixture(scope="module")
def ten():
    """Ten images of one pixel value each, which is their class."""
    values = np.arange(10)
    x = np.broadcast_to(values[:, None, None, None], (10, 32, 32, 3)).astype("uint8")
    return signs.Signs(
        x=x,
        y=values,
        quality=values,
        brightness=-values,
        sharpness=values % 5,
        size=(values - 4) ** 2,
    )


def predicting(wrong):
    def predict(x):
        found = x[:, 0, 0, 0].astype(int)
        return np.eye(11)[np.where(np.isin(found, wrong), 10, found)]

    return predict


def test_fifths_are_the_lowest_by_each_measure(ten):
    assert set(signs.scores(predicting([]), ten).values()) == {1.0}
    # The fifths are the images 0 and 1, 9 and 8, 4 and 3, 0 and 5.
    found = signs.scores(predicting([0, 3, 8, 9]), ten)
    assert found == {
        "all": 0.6, "worst_fifth": 0.5, "darkest_fifth": 0.0, "smallest_fifth": 0.5,
        "least_sharp_fifth": 0.5,
    }  # fmt: skip


def test_batches_are_the_same_for_all_methods_of_a_seed_and_whatever_comes_with_an_image(ten):
    first, again = (
        list(signs.batches(ten.x, values, 3, 2).as_numpy_iterator()) for values in (ten.y, -ten.y)
    )
    for (x, y), (same, negative) in zip(first, again):
        np.testing.assert_array_equal(x, same)
        np.testing.assert_array_equal(y, -negative)
        np.testing.assert_array_equal(x[:, 0, 0, 0], y)
    other = next(signs.batches(ten.x, ten.y, 4, 2).as_numpy_iterator())
    assert (other[1] != first[0][1]).any()
