"""What rounding adds to the loss: traces that are known in closed form, and what comes of them."""

import keras
import numpy as np
import pytest
from helpers.small_networks import images, network

import dqmq_tf
from dqmq_tf.budget import sensitivity

layers = keras.layers
CLASSES = 5


def features(count=512, size=6, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size)).astype("float32")


def one_layer(activation):
    keras.utils.set_random_seed(1)
    x = keras.Input((6,))
    return keras.Model(x, layers.Dense(CLASSES, activation=activation)(x))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
def test_the_trace_of_one_layer_is_the_known_one(activation):
    model, x = one_layer(activation), features()
    y = np.asarray(model(x))
    # For each image the information of the logits, times the squares of the input.
    of_logits = {"softmax": y * (1 - y), "sigmoid": y * (1 - y), None: np.ones_like(y)}[activation]
    expected = float(np.sum(np.square(x).sum(axis=1) * of_logits.sum(axis=1)))
    found = np.mean(
        [sensitivity.fisher_traces(model, [model.layers[-1].kernel], x, s) for s in range(4)]
    )
    assert found == pytest.approx(expected, rel=0.06)


def test_images_do_not_cancel_each_other():
    # The information is of each image, however many share a gradient.
    model = one_layer("softmax")
    x = np.concatenate([features(256), -features(256)])
    kernels = [model.layers[-1].kernel]
    both, half = (sensitivity.fisher_traces(model, kernels, part)[0] for part in (x, x[:256]))
    assert both == pytest.approx(2 * half, rel=0.3)


def test_it_is_that_of_inference():
    x = keras.Input((6,))
    norm = layers.BatchNormalization(epsilon=0.0)
    model = keras.Model(x, norm(layers.Dense(3)(x)))
    data = features()
    norm.moving_variance.assign([4.0] * 3)
    (found,) = sensitivity.fisher_traces(model, [model.layers[1].kernel], data)
    assert found == pytest.approx(3 * np.square(data).sum() / 4.0, rel=0.1)


def test_all_outputs_count_and_integers_have_no_gradient():
    x = keras.Input((6,))
    first, second = layers.Dense(3), layers.Dense(3, use_bias=False)
    y = first(x)
    outputs = {"a": y, "b": second(y), "c": keras.ops.argmax(y, axis=-1)}
    model = keras.Model(x, outputs)
    kernels = [first.kernel, second.kernel, keras.Variable(np.ones((2, 2)))]
    found = sensitivity.fisher_traces(model, kernels, features())
    alone = sensitivity.fisher_traces(keras.Model(x, y), kernels, features())
    assert found[0] > 1.2 * alone[0] > 0 and found[1] > 0 == alone[1] and found[2] == 0


def test_rows_of_an_embedding_are_taken():
    x = keras.Input((4,), dtype="int32")
    table = layers.Embedding(7, 3)
    model = keras.Model(x, layers.Dense(2)(layers.Flatten()(table(x))))
    numbers = np.random.default_rng(0).integers(0, 7, (40, 4))
    (found,) = sensitivity.fisher_traces(model, [table.embeddings], numbers)
    assert found > 0


@pytest.fixture(scope="module")
def calibrated():
    qmodel = dqmq_tf.quantize_model(network(), budget=dqmq_tf.Budget(download_bytes=6_000))
    qmodel.calibrate(images())
    return qmodel


def test_losses_are_traces_times_errors(calibrated):
    policy, parts = calibrated._parts.policy, calibrated._parts
    kernels = [parts.wrappers[p.path].kernel(p.variable) for p in calibrated._parts.costs.weights]
    traces = sensitivity.fisher_traces(parts.body, kernels, images(), parts.config.seed)
    errors = []
    for point in calibrated._parts.costs.weights:
        wrapper, name = parts.wrappers[point.path], point.variable
        steps = {b: wrapper.integers(name, b) * wrapper.step(name, b) for b in range(2, 9)}
        kernel = wrapper.kernel(name).numpy()
        errors.append([np.square(steps[b] - kernel).mean() for b in range(2, 9)])
    expected = traces[:, None] * np.array(errors)
    found = policy.loss_table.numpy()
    np.testing.assert_allclose(found, expected / expected.max(), rtol=1e-4)
    assert (np.diff(found, axis=1) < 0).all()


def test_widths_that_a_point_has_not_have_no_loss():
    rule = dqmq_tf.LayerRule(pattern="conv_1", weight_bits=(4, 8))
    config = dqmq_tf.DQMQConfig(rules=[rule])
    qmodel = dqmq_tf.quantize_model(network(), config=config)
    qmodel.calibrate(images())
    row = qmodel._parts.policy.loss_table.numpy()[1]
    assert [int(b) for b in qmodel._parts.policy.bit_widths[row > 0]] == [4, 8]


def branches():
    """Two convolutions alike, of which one hardly counts."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    loud, faint = (layers.Conv2D(16, 3, use_bias=False, name=n)(inputs) for n in ("loud", "faint"))
    x = layers.Add()([loud, layers.Rescaling(1 / 32)(faint)])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="classes")(x))


def test_what_hardly_counts_has_few_bits():
    qmodel = dqmq_tf.quantize_model(branches(), budget=dqmq_tf.Budget(download_bytes=2_300))
    names = list(qmodel.decision_points)
    loud, faint = names.index("loud:kernel"), names.index("faint:kernel")
    means = qmodel._parts.policy.mean.numpy()
    assert abs(means[loud] - means[faint]) <= 1
    qmodel.calibrate(images())
    means = qmodel._parts.policy.mean.numpy()
    assert means[loud] > means[faint] + 2


def test_a_saved_model_starts_at_the_same_bits(calibrated, tmp_path):
    calibrated.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(set(loaded._parts.policy.loss_table.numpy().ravel())) > 20
    for qmodel in (calibrated, loaded):
        qmodel._training.keeper.measure()
        qmodel._training.keeper.place_means()
    np.testing.assert_array_equal(
        loaded._parts.policy.mean.numpy(), calibrated._parts.policy.mean.numpy()
    )


def test_a_search_that_has_begun_goes_on(calibrated):
    policy = calibrated._parts.policy
    means, losses = policy.mean.numpy(), policy.loss_table.numpy()
    policy.search_step.assign(3.0)
    policy.mean.assign(means + 1)
    calibrated.calibrate(1.0 - images())
    np.testing.assert_array_equal(policy.mean.numpy(), means + 1)
    assert (policy.loss_table.numpy() != losses).any()
    policy.search_step.assign(0.0)
    calibrated.calibrate(images())
    np.testing.assert_array_equal(policy.mean.numpy(), means)


def test_operations_have_no_critic():
    qmodel = dqmq_tf.quantize_model(network(), target="simulation")
    means, losses = qmodel._parts.policy.mean.numpy(), qmodel._parts.policy.loss_table.numpy()
    qmodel.calibrate(images())
    np.testing.assert_array_equal(qmodel._parts.policy.mean.numpy(), means)
    np.testing.assert_array_equal(qmodel._parts.policy.loss_table.numpy(), losses)


def test_a_kernel_without_information_has_the_median():
    found = sensitivity._positive(np.array([4.0, 0.0, np.nan, 1.0, np.inf, 9.0]))
    np.testing.assert_array_equal(found, [4.0, 4.0, 4.0, 1.0, 4.0, 9.0])
    np.testing.assert_array_equal(sensitivity._positive(np.zeros(2)), [1.0, 1.0])


@pytest.mark.parametrize("choice", [(4,), (4, 6)])
def test_it_is_estimated_only_where_a_kernel_has_a_choice(choice):
    rules = [
        dqmq_tf.LayerRule(pattern="conv_1", weight_bits=choice),
        dqmq_tf.LayerRule(pattern=".*", weight_bits=(4,)),
    ]
    qmodel = dqmq_tf.quantize_model(
        network(),
        budget=dqmq_tf.Budget(download_bytes=10**6),
        config=dqmq_tf.DQMQConfig(rules=rules),
    )
    before = qmodel._parts.policy.loss_table.numpy()
    qmodel.calibrate(images())
    assert (qmodel._parts.policy.loss_table.numpy() != before).any() == (len(choice) > 1)
