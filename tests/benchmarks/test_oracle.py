"""The oracle: an encoder that knows the quality of each image."""

import numpy as np
import pytest
from study import oracle, runs, signs

import dqmq_tf

told = oracle.by_kind_and_severity


def embeddings(qmodel, images):
    return np.asarray(qmodel._parts.encoder(images.first(len(images))[0]))


def test_all_images_of_a_group_have_the_embedding_of_that_group(bench):
    training, test = bench.mixtures.training(0, 3), bench.mixtures.test("d")
    qmodel = dqmq_tf.quantize_model(bench.start("resnet8"), target="simulation")
    oracle.tell(qmodel, told(training), [told(test)])
    for images in (training, test):
        z, group = embeddings(qmodel, images), told(images)[1]
        for name in np.unique(group):
            assert np.ptp(z[group == name], axis=0).max() == 0
        assert len(np.unique(z, axis=0)) == len(np.unique(group))
    clean = embeddings(qmodel, training)[training.kind == 0][0]
    np.testing.assert_array_equal(embeddings(qmodel, test)[test.kind == 0][0], clean)


def test_images_of_unknown_quality_have_the_embedding_zero(bench):
    training, test = bench.mixtures.training(0, 3), bench.mixtures.test("a")
    qmodel = dqmq_tf.quantize_model(bench.start("resnet8"), target="simulation")
    oracle.tell(qmodel, told(training), [])
    assert not embeddings(qmodel, test).any() and embeddings(qmodel, training).any()


def test_more_groups_than_rows_of_the_kernel_are_an_error(bench):
    training = bench.mixtures.training(0, 3)
    qmodel = dqmq_tf.quantize_model(bench.start("resnet8"), target="simulation")
    many = type(training)(
        x=training.x, y=training.y, kind=np.arange(len(training)), severity=training.severity
    )
    with pytest.raises(ValueError, match="groups of quality, but the encoder.s kernel has 16 rows"):
        oracle.tell(qmodel, told(many), [])


def test_bits_depend_on_the_known_quality_also_behind_a_standardization(bench):
    run = runs.Run(
        network="resnet8", method="dqmq", kind="mean_bit_width", budget=3.0, steps=6,
        ablation="told_quality", front="standardization",
    )  # fmt: skip
    record = bench.execute(run)
    bits = record["bits_by_kind"]
    assert any(bits["clean"] != found for found in bits.values())
    assert set(record["shuffled"]) == set("abcd")


def test_bins_hold_as_many_training_images_each_and_tell_both_measures_apart():
    random = np.random.default_rng(0)
    size, sharpness = random.lognormal(3, 1, 4_000), random.random(4_000)
    bins = oracle.Bins(size, sharpness)
    groups = bins.of(size, sharpness)
    assert set(groups) == set(range(16))
    assert np.ptp(np.bincount(groups // 4)) == np.ptp(np.bincount(groups % 4)) == 0
    order = np.argsort(size)
    assert (np.diff(groups[order] // 4) >= 0).all()
    assert (np.diff(groups[np.argsort(sharpness)] % 4) >= 0).all()
    # Values beyond those of training belong to the outermost groups.
    assert bins.of(np.array([0, 1e9]), np.array([-1, 2])).tolist() == [0, 15]


@pytest.mark.parametrize("shuffled", [False, True])
def test_signs_are_told_by_size_and_sharpness_or_by_those_of_another_sign(bench, shuffled):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (1_000, 16, 16, 3)).astype("uint8")
    measures = {
        name: random.random(1_000) for name in ("quality", "brightness", "sharpness", "size")
    }

    def part(rows):
        values = {name: each[rows] for name, each in measures.items()}
        return signs.Signs(x=pixels[rows], y=np.zeros(len(pixels[rows]), "int64"), **values)

    train, test = part(slice(0, 800)), part(slice(800, None))
    qmodel = dqmq_tf.quantize_model(bench.start("resnet8"), target="simulation")

    def batches(values):
        return signs.batches(train.x, values, 0, 8)

    oracle.tell_size_and_sharpness(
        qmodel, train, test, batches, np.random.default_rng(1) if shuffled else None
    )
    bins = oracle.Bins(train.size, train.sharpness)
    groups = bins.of(test.size, test.sharpness)
    z = np.asarray(qmodel._parts.encoder(test.x.astype("float32")))
    # Every embedding belongs to one group, and every group has one, if the truth is told.
    pairs = {(tuple(row), group) for row, group in zip(z, groups)}
    assert len({row for row, _ in pairs}) == len(set(groups)) == 16
    assert (len(pairs) == 16) != shuffled
    # The images of training are known as they are when they are shifted.
    shifted, _ = next(batches(train.y).as_numpy_iterator())
    assert np.asarray(qmodel._parts.encoder(shifted)).any(axis=1).all()
