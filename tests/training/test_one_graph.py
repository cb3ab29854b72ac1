"""Search and fine-tuning share one traced graph, which does in each phase what a graph of its own does."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import dqmq_tf
from dqmq_tf.policy.policy_state import PolicyState
from dqmq_tf.training import steps

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(0, 1, (48, 8, 8, 3)).astype("float32")
LABELS = RANDOM.integers(0, 3, 48)


def quantized(target, **options):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    # There, activation bits are learned, but do not follow each sample once they are settled.
    rules = [dqmq_tf.LayerRule(pattern=".*", activation_bits=(8, 16))] * (
        target == "microcontroller"
    )
    config = dqmq_tf.DQMQConfig(rules=rules, **options)
    qmodel = dqmq_tf.quantize_model(model, target=target, config=config)
    # Plain gradient descent: Adam would turn rounding errors of small gradients into whole steps.
    qmodel.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
    return qmodel


def fit(qmodel, epochs=2):
    """Trains for 12 steps, of which the first 8 or so search."""
    data = {"validation_data": (IMAGES[:16], LABELS[:16]), "verbose": 0, "shuffle": False}
    return qmodel.fit(IMAGES, LABELS, batch_size=8, epochs=epochs, **data).history


def state(qmodel):
    """All variables that a training step may change."""
    training = qmodel._training
    optimizers = qmodel.optimizer, training.policy_optimizer, training.encoder_optimizer
    variables = [*qmodel.variables, *qmodel._parts.policy.seen.variables.values()]
    return [*variables, *(v for optimizer in optimizers for v in optimizer.variables)]


@pytest.mark.parametrize("target", ["android", "simulation"])
def test_settling_traces_nothing(target, monkeypatch):
    traced = []

    def recorded(function, kind):
        def step(model, data):
            traced.append((kind, model._parts.policy.phase))
            return function(model, data)

        return step

    monkeypatch.setattr(steps, "train_step", recorded(steps.train_step, "train"))
    monkeypatch.setattr(steps, "test_step", recorded(steps.test_step, "test"))
    qmodel = quantized(target)
    # Also not the variables that Keras creates for metrics when it first sees labels.
    qmodel.compile(
        keras.optimizers.SGD(0.05),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        weighted_metrics=["accuracy"],
    )
    fit(qmodel)
    assert qmodel._parts.policy.phase == "settled"
    assert 0 < qmodel._training.steps_searched < 12
    assert traced == [("train", "search"), ("test", traced[-1][1])]
    once = len(traced)
    evaluated = qmodel.evaluate(IMAGES, LABELS, batch_size=8, verbose=0, return_dict=True)
    assert len(traced) == once
    right = (qmodel.predict(IMAGES, verbose=0).argmax(-1) == LABELS).mean()
    assert evaluated["accuracy"] == evaluated["weighted_accuracy"] == pytest.approx(right)
    qmodel.freeze()
    qmodel.evaluate(IMAGES, LABELS, batch_size=8, verbose=0)
    assert traced[once:] == [("test", "frozen")], "frozen bits have a graph of their own"


@pytest.mark.parametrize("target", ["android", "microcontroller", "simulation"])
def test_tensorflow_copies_no_function_for_one_of_its_calls(target):
    """It does where an argument is constant or a result unread, and optimizes each of the copies."""
    qmodel = quantized(target)
    qmodel.calibrate(IMAGES)
    qmodel._training.begin(100)
    batch = [tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in (IMAGES, LABELS)]
    train = tf.function(lambda *data: qmodel.train_step(data), autograph=False)
    graph = train.get_concrete_function(*batch).graph
    read = {t.name for op in graph.get_operations() for t in op.inputs}
    read |= {t.name for t in graph.outputs}
    functions = {f.signature.name: f for f in graph.as_graph_def().library.function}
    calls, unread = 0, []
    for op in graph.get_operations():
        if op.type not in ("PartitionedCall", "StatefulPartitionedCall"):
            continue
        if functions[op.get_attr("f").name].attr["_XlaMustCompile"].b:
            continue  # These are not copied.
        calls += 1
        assert not [t.name for t in op.inputs if t.op.type == "Const"], op.name
        unread += [t.name for t in op.outputs if t.name not in read]
    assert calls > 10
    # Nobody reads the gradient of the images, which a trained quantizer of the input has.
    assert len(unread) <= 1


@pytest.mark.parametrize("adds_a_loss", [False, True])
def test_the_losses_of_several_outputs_are_no_reason_to_trace_twice(adds_a_loss, monkeypatch):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    # Losses that layers add cannot be computed ahead, so that Keras creates variables in the step.
    regularizer = "l2" if adds_a_loss else None
    x = keras.layers.Dense(3, activity_regularizer=regularizer)(inputs)
    model = keras.Model(inputs, [keras.layers.Dense(2)(x), keras.layers.Dense(1)(x)])
    train_step, traced = steps.train_step, []

    def recorded(model, data):
        traced.append(data)
        return train_step(model, data)

    monkeypatch.setattr(steps, "train_step", recorded)
    qmodel = dqmq_tf.quantize_model(model, target="simulation")
    qmodel.compile("sgd", ["mse", "mae"])
    labels = [RANDOM.normal(size=(16, 2)), RANDOM.normal(size=(16, 1))]
    history = qmodel.fit(
        IMAGES[:16, 0, 0, :1] * np.ones(4), labels, batch_size=8, verbose=0
    ).history
    assert len(traced) == 1 + adds_a_loss
    assert len(history) >= 3 and all(np.isfinite(values).all() for values in history.values())


def step(qmodel, variables):
    """Returns the loss of a step and the values after it; the variables get their old values back."""
    before = [v.numpy() for v in variables]
    loss, after = qmodel.train_on_batch(IMAGES, LABELS), [v.numpy() for v in variables]
    for variable, value in zip(variables, before):
        variable.assign(value)
    return loss, after


@pytest.mark.parametrize(
    ("target", "quality_aware"),
    [("android", True), ("simulation", True), ("simulation", False)],
)
def test_one_graph_does_what_a_graph_for_each_phase_does(target, quality_aware, monkeypatch):
    qmodel = quantized(target, quality_aware=quality_aware)
    qmodel.calibrate(IMAGES)
    qmodel._training.begin(100)
    # Beyond the warm-up, and with moments in the optimizers.
    for _ in range(2):
        qmodel._parts.policy.search_step.assign(40.0)
        qmodel.train_on_batch(IMAGES, LABELS)
    policy, training, variables = qmodel._parts.policy, qmodel._training, state(qmodel)
    found = {}
    for phase in ("search", "settled"):
        if phase == "settled":
            training.settle()
        found[phase] = [v.numpy() for v in variables], *step(qmodel, variables)
    graph_key = property(lambda policy: (policy.phase, policy.profiles))
    monkeypatch.setattr(PolicyState, "graph_key", graph_key)
    for phase in ("settled", "search"):
        before, loss, after = found[phase]
        for variable, value in zip(variables, before):
            variable.assign(value)
        assert policy.phase == phase
        shared = qmodel.train_function
        expected_loss, expected = step(qmodel, variables)
        assert qmodel.train_function is not shared, "traced for this phase"
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
        # Momentum and draws go on while policy and encoder rest, and count for nothing.
        unused = {id(policy.random.state)}
        if phase == "settled":
            for optimizer in (training.policy_optimizer, training.encoder_optimizer):
                unused |= {id(v) for v in optimizer.variables}
        changed = 0
        for variable, value, wanted, old in zip(variables, after, expected, before):
            if id(variable) not in unused:
                scale = np.abs(wanted - old).max(initial=0)
                np.testing.assert_allclose(
                    value, wanted, rtol=1e-5, atol=1e-6 + 1e-2 * scale, err_msg=variable.path
                )
                changed += scale > 0
        assert changed > 5


@pytest.mark.parametrize("target", ["android", "simulation"])
def test_graphs_predict_as_eager_calls_in_both_phases(target):
    qmodel = quantized(target)
    qmodel.calibrate(IMAGES)
    qmodel._training.begin(100)
    # Tracing would take longer than this step.
    qmodel.run_eagerly = True
    qmodel.train_on_batch(IMAGES, LABELS)
    qmodel.run_eagerly = False
    function = qmodel.predict_on_batch
    searched = function(IMAGES)
    np.testing.assert_allclose(searched, qmodel(IMAGES, training=False), rtol=1e-4, atol=1e-6)
    policy = qmodel._parts.policy
    qmodel._training.settle()
    policy.assigned.assign(np.full(policy.assigned.shape, 2.0))
    settled = function(IMAGES)
    np.testing.assert_allclose(settled, qmodel(IMAGES, training=False), rtol=1e-4, atol=1e-6)
    assert not np.allclose(settled, searched, atol=1e-4)
