"""Checks the measures of quality against values by hand and against laws."""

import numpy as np
import pytest

from dqmq_tf import quality


@pytest.fixture
def images():
    return quality_images()


def quality_images():
    digits = quality.digits("test", size=16, channels=3).take(12)
    return np.stack([image for image, _ in digits.as_numpy_iterator()]).astype("float32")


class TestMeasure:
    def test_values_by_hand(self):
        spot = np.zeros((1, 3, 4, 1))
        spot[0, 1, 1] = 8
        found = quality.measure(spot)
        assert found["brightness"] == pytest.approx([8 / 12])
        assert found["contrast"] == pytest.approx([spot.std()])
        # The Laplacian at the two inner pixels is -32 and 8.
        assert found["sharpness"] == pytest.approx([20])

    def test_gain_and_offset_change_the_measures_in_proportion(self, images):
        before, after = quality.measure(images), quality.measure(0.5 * images + 20)
        assert after["brightness"] == pytest.approx(0.5 * before["brightness"] + 20, rel=1e-4)
        assert after["contrast"] == pytest.approx(0.5 * before["contrast"], rel=1e-4)
        assert after["sharpness"] == pytest.approx(0.5 * before["sharpness"], rel=1e-4)

    @pytest.mark.parametrize(
        ("kind", "name", "sign"),
        [
            ("low_light", "brightness", -1),
            ("brightness", "brightness", 1),
            ("contrast", "contrast", -1),
            ("gaussian_blur", "sharpness", -1),
            ("gaussian_noise", "sharpness", 1),
        ],
    )
    def test_degradations_move_their_measure(self, images, kind, name, sign):
        degraded = quality.degrade(images, kind, 4, value_range=(0, 255))
        change = quality.measure(degraded)[name] - quality.measure(images)[name]
        assert (sign * change > 0).mean() > 0.9

    def test_a_plane_is_not_sharp(self):
        y, x = np.mgrid[:8, :9].astype("float32")
        assert quality.measure((3 * x + 2 * y)[None, ..., None])["sharpness"] == pytest.approx(
            [0], abs=1e-5
        )

    def test_integers_and_opacity(self, images):
        integers = images.round().astype("uint8")
        opaque = np.concatenate(
            [integers, np.full((*integers.shape[:3], 1), 255, "uint8")], axis=-1
        )
        expected = quality.measure(integers.astype("float32"))
        for values in (integers, opaque):
            for name, found in quality.measure(values).items():
                assert found.dtype == "float32"
                assert found == pytest.approx(expected[name], rel=1e-5)

    @pytest.mark.parametrize("shape", [(4, 8, 8), (4, 8, 8, 2), (4, 2, 8, 3)])
    def test_other_shapes_are_refused(self, shape):
        with pytest.raises(
            ValueError, match=r"quality.measure got images of shape.*Give it images"
        ):
            quality.measure(np.zeros(shape))
