import numpy as np
import tensorflow as tf

from dqmq_tf import quality
from dqmq_tf.quality import resolution


def test_pixelate_merges_neighbors_as_a_box_filter_does():
    ramp = np.tile(np.arange(32, dtype=np.float32)[:, None, None] / 32, [1, 32, 3])
    pixelated = quality.degrade(ramp, "pixelate", 5).numpy()[:, 0, 0] * 32
    # 20 boxes on 32 pixels: by hand, the first 1.6 pixels wide each.
    np.testing.assert_allclose(pixelated[:8], [0.5, 0.5, 2, 3.5, 3.5, 5, 6.5, 6.5], atol=1e-5)
    assert len(np.unique(pixelated)) == 20


def test_pixelate_keeps_the_documented_number_of_pixels(digit_images):
    for side, severity in zip(resolution.PIXELATE_SIDE, quality.SEVERITIES):
        pixelated = quality.degrade(digit_images[0], "pixelate", severity).numpy()
        distinct_rows = 1 + np.any(pixelated[1:] != pixelated[:-1], axis=(1, 2)).sum()
        assert distinct_rows <= int(32 * side)


def test_low_resolution_removes_detail_and_keeps_the_mean():
    board = np.indices([32, 32]).sum(0)[..., None] % 2
    low = quality.degrade(board.astype(np.float32), "low_resolution", 3).numpy()
    np.testing.assert_allclose(low, 0.5, atol=1e-5)


def test_jpeg_equals_encoding_at_the_documented_quality(digit_images):
    for level, severity in zip(resolution.JPEG_QUALITY, quality.SEVERITIES):
        coded = tf.io.decode_jpeg(
            tf.io.encode_jpeg(digit_images[0], quality=level), dct_method="INTEGER_ACCURATE"
        )
        np.testing.assert_array_equal(quality.degrade(digit_images[0], "jpeg", severity), coded)


def test_jpeg_codes_other_channel_counts_as_gray_planes(digit_images):
    gray = digit_images[..., :1]
    coded = quality.degrade(gray, "jpeg", 5)
    both = quality.degrade(np.concatenate([gray, gray], -1), "jpeg", 5)
    np.testing.assert_array_equal(both, np.repeat(coded, 2, -1))
