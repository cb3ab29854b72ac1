"""The oracle: an encoder that knows the quality of each image."""

import numpy as np
import pytest
from study import oracle, runs

import dqmq_tf


def embeddings(qmodel, images):
    return np.asarray(qmodel._parts.encoder(images.first(len(images))[0]))


def test_all_images_of_a_group_have_the_embedding_of_that_group(bench):
    training, test = bench.mixtures.training(0, 3), bench.mixtures.test("d")
    qmodel = dqmq_tf.quantize_model(bench.start("resnet8"), target="simulation")
    oracle.tell(qmodel, training, [test])
    for images in (training, test):
        z, group = embeddings(qmodel, images), oracle._groups(images)
        for name in np.unique(group):
            assert np.ptp(z[group == name], axis=0).max() == 0
        assert len(np.unique(z, axis=0)) == len(np.unique(group))
    clean = embeddings(qmodel, training)[training.kind == 0][0]
    np.testing.assert_array_equal(embeddings(qmodel, test)[test.kind == 0][0], clean)


def test_images_of_unknown_quality_have_the_embedding_zero(bench):
    training, test = bench.mixtures.training(0, 3), bench.mixtures.test("a")
    qmodel = dqmq_tf.quantize_model(bench.start("resnet8"), target="simulation")
    oracle.tell(qmodel, training, [])
    assert not embeddings(qmodel, test).any() and embeddings(qmodel, training).any()


def test_more_groups_than_rows_of_the_kernel_are_an_error(bench):
    training = bench.mixtures.training(0, 3)
    qmodel = dqmq_tf.quantize_model(bench.start("resnet8"), target="simulation")
    many = type(training)(
        x=training.x, y=training.y, kind=np.arange(len(training)), severity=training.severity
    )
    with pytest.raises(ValueError, match="groups of quality, but the encoder.s kernel has 16 rows"):
        oracle.tell(qmodel, many, [])


def test_bits_depend_on_the_known_quality(bench):
    run = runs.Run(
        network="resnet8", method="dqmq", kind="mean_bit_width", budget=3.0, steps=6,
        ablation="told_quality",
    )  # fmt: skip
    record = bench.execute(run)
    bits = record["bits_by_kind"]
    assert any(bits["clean"] != found for found in bits.values())
    assert set(record["shuffled"]) == set("abcd")
