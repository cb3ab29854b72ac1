"""Budgets that Vela measures: cycles and flash of the real file of settled bits."""

import functools
import re
import subprocess

import keras
import numpy as np
import pytest
from keras import layers

import dqmq_tf
from dqmq_tf.errors import ConversionError
from dqmq_tf.runtimes import vela

KINDS = ("vela_cycles", "vela_flash_bytes")
# Each candidate is one run of Vela.
CONFIG = dqmq_tf.DQMQConfig(rules=dqmq_tf.LayerRule(pattern=".*", weight_bits=(2, 4, 8)))


def network():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((4, 4, 8), name="image")
    for n in range(3):
        x = layers.Conv2D(24, 3, padding="same", activation="relu", name=f"conv{n}")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(x))


def images():
    return np.random.default_rng(0).uniform(-1, 1, (64, 4, 4, 8)).astype("float32")


def quantized(config=CONFIG, **budget):
    return dqmq_tf.quantize_model(
        network(), target="ethos_u", budget=dqmq_tf.Budget(**budget), config=config
    )


def costs_of(qmodel, path, profile=0):
    report = dqmq_tf.convert(qmodel, path, verify=False, profile=profile).vela
    return {"vela_cycles": report.cycles, "vela_flash_bytes": report.flash_bytes}


def cost_of(qmodel, kind, path, profile=0):
    return costs_of(qmodel, path, profile)[kind]


def costs_at(bits, path):
    rule = dqmq_tf.LayerRule(pattern=".*", weight_bits=bits)
    qmodel = quantized(dqmq_tf.DQMQConfig(rules=rule), vela_cycles=10**9)
    qmodel.calibrate(images())
    return costs_of(qmodel.freeze(), path)


@pytest.fixture(scope="module", autouse=True)
def every_run_of_vela_is_kept():
    """Lets the tests share what Vela says of equal files; the package keeps the last few runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vela, "_compiled", functools.lru_cache(None)(vela._compiled.__wrapped__))
        yield


@pytest.fixture(scope="module")
def costs_at_the_ends(tmp_path_factory):
    """What Vela says of the files with the fewest and with the most bits."""
    path = tmp_path_factory.mktemp("ends") / "model.tflite"
    return costs_at(2, path), costs_at(8, path)


@pytest.fixture(scope="module", params=KINDS)
def ends(request, costs_at_the_ends):
    """A kind of budget, and what Vela says of the files with the fewest and with the most bits."""
    low, high = costs_at_the_ends
    return request.param, low[request.param], high[request.param]


@pytest.fixture(scope="module")
def settled(ends):
    kind, low, high = ends
    qmodel = quantized(**{kind: low + 0.5 * (high - low)})
    qmodel.calibrate(images())
    qmodel._training.begin(100)
    qmodel._training.settle()
    return kind, qmodel


def test_an_impossible_budget_is_refused_with_the_real_minimum(ends):
    kind, low, _ = ends
    with pytest.raises(ValueError, match=f"{kind}=10 is below the smallest") as refusal:
        quantized(**{kind: 10})
    (minimum,) = re.findall(r"the cost is ([\d,]+)\.", str(refusal.value))
    assert int(minimum.replace(",", "")) == low


def test_settled_bits_meet_the_budget_by_vela_and_use_it(settled, ends, tmp_path):
    kind, qmodel = settled
    _, low, high = ends
    budget = qmodel.budget.value
    found = cost_of(qmodel.freeze(), kind, tmp_path / "model.tflite")
    assert low + 0.25 * (high - low) <= found <= budget
    # The report knows what Vela said, not an estimate.
    assert dqmq_tf.summary(qmodel).cost == found
    assert f"of the budget {kind}" in " ".join(str(dqmq_tf.summary(qmodel)).split())
    assert len(set(qmodel.precision(0).weights)) == 4


@pytest.mark.parametrize("ends", ["vela_flash_bytes"], indirect=True)
def test_weights_that_vela_compresses_worse_lose_bits(ends, tmp_path):
    kind, low, high = ends
    qmodel = quantized(**{kind: low + 0.5 * (high - low)})
    random = np.random.default_rng(1)
    for wrapper in qmodel._parts.wrappers.values():
        drawn = random.uniform(-1, 1, wrapper.layer.kernel.shape)
        wrapper.layer.kernel.assign(0.2 * np.sign(drawn) * np.abs(drawn) ** 4.0)
    qmodel.calibrate(images())
    qmodel._training.settle()
    before = qmodel._parts.policy.assigned.numpy()[0]
    for wrapper in qmodel._parts.wrappers.values():
        wrapper.layer.kernel.assign(random.uniform(-0.2, 0.2, wrapper.layer.kernel.shape))
    qmodel.freeze()
    after = qmodel._parts.policy.assigned.numpy()[0]
    assert (after <= before).all()
    assert cost_of(qmodel, kind, tmp_path / "model.tflite") <= qmodel.budget.value


@pytest.mark.parametrize("ends", ["vela_flash_bytes"], indirect=True)
def test_bits_are_lowered_until_vela_agrees_however_wrong_the_estimate_is(ends):
    kind, low, high = ends
    qmodel = quantized(**{kind: low + 0.1 * (high - low)})
    qmodel.calibrate(images())
    qmodel._training.settle()
    parts, keeper = qmodel._parts, qmodel._training.keeper
    for row in parts.costs.table:
        row.update(dict.fromkeys(row, 0.0))
    parts.policy.assigned.assign(np.full(parts.policy.assigned.shape, 8.0))
    qmodel._training.keep_budget()
    (bits,) = parts.policy.assigned.numpy()[:1]
    assert keeper.write(bits)[kind] <= qmodel.budget.value


@pytest.mark.parametrize("ends", ["vela_cycles"], indirect=True)
def test_each_profile_meets_the_budget(ends, tmp_path):
    kind, low, high = ends
    config = dqmq_tf.DQMQConfig(rules=CONFIG.rules, profiles=2)
    qmodel = quantized(config, **{kind: low + 0.4 * (high - low)})
    directions = np.random.default_rng(3).normal(0, 2, qmodel._parts.policy.direction.shape)
    qmodel._parts.policy.direction.assign(directions)
    qmodel.calibrate(images())
    qmodel.freeze(profiles=2, data=images())
    for profile in range(2):
        found = cost_of(qmodel, kind, tmp_path / "model.tflite", profile)
        assert found <= qmodel.budget.value


def test_a_saved_model_knows_its_costs_without_vela(settled, tmp_path, monkeypatch):
    kind, qmodel = settled
    before = qmodel._parts.costs.of_file([4] * 4, [])
    qmodel.save(tmp_path / "model.keras")
    monkeypatch.setattr(vela, "program", lambda: None)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.budget == qmodel.budget
    loaded._training.keeper.measure()
    assert loaded._parts.costs.of_file([4] * 4, []) == pytest.approx(before)


def test_a_file_over_the_budget_is_not_written(settled, tmp_path):
    kind, qmodel = settled
    qmodel.freeze()
    before = qmodel._parts.budget
    qmodel._parts.budget = dqmq_tf.Budget(**{kind: 100})
    try:
        with pytest.raises(ConversionError, match=rf"the file takes [\d,]+ \({kind}\), the .* 100"):
            dqmq_tf.convert(qmodel, tmp_path / "model.tflite", verify=False)
    finally:
        qmodel._parts.budget = before
    assert not (tmp_path / "model.tflite").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_other_targets_refuse_such_a_budget(kind):
    message = f"Budget {kind} is measured by Vela.*target 'microcontroller'.*'ethos_u'"
    with pytest.raises(ValueError, match=message):
        dqmq_tf.quantize_model(
            network(), target="microcontroller", budget=dqmq_tf.Budget(**{kind: 10**6})
        )


def test_a_missing_vela_is_named(monkeypatch):
    monkeypatch.setattr(vela, "program", lambda: None)
    with pytest.raises(ImportError, match="Budget vela_cycles.*pip install ethos-u-vela"):
        quantized(vela_cycles=10**6)


def test_a_model_without_a_file_cannot_have_such_a_budget():
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    with pytest.raises(ValueError, match="Budget vela_cycles needs a file.*cannot be converted"):
        dqmq_tf.quantize_model(model, target="ethos_u", budget=dqmq_tf.Budget(vela_cycles=10**6))


def test_vela_runs_once_for_each_candidate(monkeypatch):
    calls, run = [], subprocess.run

    def counted(command, **options):
        calls.append(command)
        return run(command, **options)

    monkeypatch.setattr(vela.subprocess, "run", counted)
    monkeypatch.setattr(vela, "_compiled", vela._compiled.__wrapped__)
    quantized(vela_cycles=10**6)
    compiled = [c for c in calls if "--version" not in c]
    # The fourth is the file with the fewest bits, which would be kept.
    assert len(compiled) == 4
