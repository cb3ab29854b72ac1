"""Budgets that decide which activations get 16 bits."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

import dqmq_tf
from dqmq_tf.budget import activation_allocation

LENGTH, CLIPS = 64, 256
# 8-bit weights, so that activations alone decide the cost.
RULE = dqmq_tf.LayerRule(pattern=".*", weight_bits=8, activation_bits=(8, 16))


def sounds(seed):
    """Returns sound with a hum and without it, `[CLIPS, 1, LENGTH, 1]`, whose loudness varies."""
    random = np.random.default_rng(seed)
    time = np.arange(LENGTH)

    def waves(slowest, fastest):
        frequency = random.uniform(slowest, fastest, (CLIPS, 1))
        return np.sin(2 * np.pi * (frequency * time + random.uniform(0, 1, (CLIPS, 1))))

    loudness = 10 ** random.uniform(-2, 0, (CLIPS, 1))
    clean = loudness * waves(0.01, 0.08)
    heard = clean + 0.3 * loudness * waves(0.3, 0.4)
    return [x.reshape(CLIPS, 1, LENGTH, 1).astype("float32") for x in (heard, clean)]


def low_pass():
    """A network whose first layer is a low-pass filter, so that little training is needed."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((1, LENGTH, 1), name="sound")
    taps = np.sinc(0.4 * np.arange(-7, 8)) * np.hamming(15)
    first = layers.Conv2D(4, (1, 15), padding="same", use_bias=False, name="filter")
    hidden = layers.Conv2D(4, (1, 3), padding="same", name="hidden")
    last = layers.Conv2D(1, (1, 1), name="last")
    model = keras.Model(inputs, last(hidden(first(x))))
    kernel = np.zeros((1, 15, 1, 4), "float32")
    kernel[0, :, 0] = (taps / taps.sum())[:, None] * [1.0, -1.0, 0.5, 0.5]
    first.kernel.assign(kernel)
    middle = np.zeros((1, 3, 4, 4), "float32")
    middle[0, 1] = np.eye(4)
    hidden.kernel.assign(middle)
    last.kernel.assign(np.reshape([0.4, -0.4, 0.2, 0.2], (1, 1, 4, 1)))
    return model


def trained(target="ethos_u", rule=RULE, epochs=1, **budget):
    """Returns a frozen model after a short training, or after a calibration alone."""
    qmodel = dqmq_tf.quantize_model(
        low_pass(),
        target=target,
        budget=dqmq_tf.Budget(**budget),
        config=dqmq_tf.DQMQConfig(rules=rule, quality_aware=False),
    )
    heard, clean = sounds(0)
    if not epochs:
        qmodel.calibrate(heard)
        return qmodel.freeze()
    qmodel.compile(keras.optimizers.Adam(1e-4), "mse")
    qmodel.fit(heard, clean, batch_size=16, epochs=epochs, verbose=0)
    return qmodel.freeze()


def activation_bits(qmodel):
    """Returns `{name of a decision point: activation bits}`."""
    precision = qmodel.precision(0)
    return {
        point.name: precision.activations[point.tensors[0]].bit_width
        for point in qmodel._parts.costs.activations
    }


def signal_to_noise(qmodel):
    """Returns the signal-to-noise ratio of new clips in dB, averaged over clips of all loudness."""
    heard, clean = sounds(1)
    squares = np.square(qmodel.predict(heard, verbose=0) - clean).mean(axis=(1, 2, 3))
    return 10 * np.mean(np.log10(np.square(clean).mean(axis=(1, 2, 3)) / squares))


def cycles(qmodel, path):
    """Returns what Vela says of the file of a model, and checks that the NPU runs all of it."""
    report = dqmq_tf.convert(qmodel, path / "model.tflite", data=sounds(1)[0][:32])
    assert report.verification.different_numbers == 0
    assert report.vela.cpu_operators == 0
    return report.vela.cycles


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """The networks with 8 and with 16 bits alone, and their cycles."""
    path, found = tmp_path_factory.mktemp("ends"), []
    for bits in (8, 16):
        rule = dqmq_tf.LayerRule(pattern=".*", weight_bits=8, activation_bits=bits)
        qmodel = trained(rule=rule, epochs=0, size_bytes=10**6)
        found.append((qmodel, cycles(qmodel, path)))
    return found


@pytest.fixture(scope="module")
def between(ends):
    """A network whose budget in cycles lies between the two."""
    (_, low), (_, high) = ends
    return trained(vela_cycles=low + 0.9 * (high - low))


def test_activations_of_16_bits_keep_quiet_sound_that_8_bits_lose(ends):
    (narrow, _), (wide, _) = ends
    assert signal_to_noise(wide) > signal_to_noise(narrow) + 3.0


def test_a_budget_in_cycles_decides_which_activations_get_16_bits(ends, between, tmp_path):
    (narrow, low), (_, high) = ends
    assert set(activation_bits(between).values()) == {8, 16}
    found = cycles(between, tmp_path)
    # What Vela measures, not an estimate, meets the budget.
    assert low < found <= between.budget.value < high
    assert dqmq_tf.summary(between).cost == found
    assert signal_to_noise(between) > signal_to_noise(narrow) + 0.3


def test_the_estimate_of_mixed_bits_is_close_to_what_vela_measures(between):
    parts, keeper = between._parts, between._training.keeper
    for bits in ((8, 16, 16, 16), (16, 8, 8, 8), (8, 8, 16, 8), (16, 16, 8, 8)):
        estimate = parts.costs.exact([8, 8, 8], bits) - parts.costs.exact([8, 8, 8], [8] * 4)
        low, found = (keeper.write(np.array([*b, 8, 8, 8])) for b in ([8] * 4, bits))
        measured = found["vela_cycles"] - low["vela_cycles"]
        assert abs(estimate - measured) <= 0.25 * max(measured, 400)


def test_a_model_that_was_saved_knows_what_16_bits_cost(between, tmp_path):
    between.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert dqmq_tf.summary(restored).cost == dqmq_tf.summary(between).cost
    assert activation_bits(restored) == activation_bits(between)


def test_a_budget_below_the_cycles_of_8_bits_is_refused(ends):
    (_, low), _ = ends
    with pytest.raises(ValueError, match=f"below the smallest.*the cost is {low:,}"):
        trained(vela_cycles=low - 1)


def test_a_mean_bit_width_decides_on_a_microcontroller_and_bytes_limit_no_activation(tmp_path):
    qmodel = trained("microcontroller", epochs=0, mean_bit_width=10)
    assert set(activation_bits(qmodel).values()) == {8, 16}
    assert dqmq_tf.summary(qmodel).cost <= 10
    dqmq_tf.convert(qmodel, tmp_path / "model.tflite", data=sounds(1)[0][:32])
    qmodel = trained("microcontroller", epochs=0, size_bytes=10**6)
    assert set(activation_bits(qmodel).values()) == {16}


# What a row of the table adds: a chain of three operators, each of which costs something if its input
# has 16 bits, and more if it then has to narrow its output.
INPUTS, OUTPUTS = np.eye(4)[:3], np.eye(4)[1:]
WIDE, NARROWING = np.array([740.0, 776.0, 670.0]), np.array([2145.0, 2145.0, 0.0])


def added(bits):
    share = (np.asarray(bits) - 8.0) / 8.0
    is_wide, is_narrow = share @ INPUTS.T, 1.0 - share @ OUTPUTS.T
    return is_wide @ WIDE + (is_wide * is_narrow) @ NARROWING


def all_choices(count):
    return np.array(list(itertools.product((8, 16), repeat=count)))


@pytest.mark.parametrize("limit", [0.0, 700.0, 1500.0, 2000.0, 2186.0, 9000.0])
def test_the_most_valuable_activations_get_16_bits(limit):
    levels, tops = np.array([8.9, 8.7, 8.6, 8.8]), np.full(4, 16)
    bits = activation_allocation.allocate(levels, tops, np.zeros((0, 4), bool), added, limit)
    choices = all_choices(4)
    value = (choices == 16) @ 4.0**levels
    best = choices[np.where(added(choices) <= limit, value, -1.0).argmax()]
    assert bits.tolist() == best.tolist()


def test_many_activations_are_changed_together(monkeypatch):
    monkeypatch.setattr(activation_allocation, "_MOST_COMPARED", 0)
    levels, tops = np.array([8.9, 8.7, 8.4, 8.4]), np.full(4, 16)
    # 16 bits for one tensor in the middle alone cost more than for all behind it together.
    sets = np.array([[0, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1]], bool)
    for limit in (1500.0, 2186.0):
        bits = activation_allocation.allocate(levels, tops, sets, added, limit)
        assert added(bits) <= limit
        assert bits[1:].tolist() == [16, 16, 16]


def test_assigned_bits_are_never_raised_above_a_ceiling():
    levels, tops = np.full(4, 8.9), np.array([16, 8, 8, 16])
    bits = activation_allocation.allocate(levels, tops, np.zeros((0, 4), bool), added, 10_000.0)
    assert bits.tolist() == [16, 8, 8, 16]
