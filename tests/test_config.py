import dataclasses
import json

import numpy as np
import pytest

from dqmq_tf.config import BUDGET_KINDS, Budget, DQMQConfig, LayerRule, ObjectiveTerms


@pytest.mark.parametrize("kind", BUDGET_KINDS)
def test_budget_knows_its_kind_and_value(kind):
    budget = Budget(**{kind: 5})
    assert (budget.kind, budget.value) == (kind, 5)


@pytest.mark.parametrize("number", [np.float32(5), np.float64(5), np.int64(5)])
def test_budget_accepts_numpy_numbers(number):
    assert Budget(size_bytes=number).value == 5


@pytest.mark.parametrize("given", [{}, {"size_bytes": 3, "bit_ops": 4}])
def test_budget_with_no_or_several_kinds_is_an_error(given):
    with pytest.raises(ValueError, match="exactly one of size_bytes, download_bytes"):
        Budget(**given)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "5", True])
def test_budget_that_is_not_a_positive_number_is_an_error(value):
    with pytest.raises(ValueError, match=r"bit_ops=.*positive"):
        Budget(bit_ops=value)


def test_budget_takes_keywords_only_and_cannot_be_changed():
    with pytest.raises(TypeError):
        Budget(5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Budget(bit_ops=5).bit_ops = 6


def test_rule_sorts_its_candidates_and_accepts_single_values():
    rule = LayerRule(pattern="x", weight_bits=[8, 2, 4, 2], activation_bits=8, weights="kernel")
    assert rule.weight_bits == (2, 4, 8)
    assert rule.activation_bits == (8,)
    assert rule.weights == ("kernel",)
    assert LayerRule(pattern="x", weights=()).weights == ()
    assert LayerRule(pattern="x", weight_bits=np.int64(4)).weight_bits == (4,)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"pattern": "("}, "not a regular expression"),
        ({"pattern": "x", "weight_bits": ()}, "weight_bits"),
        ({"pattern": "x", "activation_bits": ()}, "activation_bits"),
        ({"pattern": "x", "quantize": "no"}, "quantize='no'.*True or False"),
        ({"pattern": "x", "weight_bits": True}, "weight_bits=.*integers"),
        ({"pattern": "x", "weight_bits": 4.5}, "weight_bits=.*integers"),
        ({"pattern": "x", "activation_bits": (8, "16")}, "activation_bits=.*integers"),
        ({"pattern": "x", "weights": 8}, "weights=.*names"),
    ],
)
def test_rule_with_an_invalid_argument_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        LayerRule(**arguments)


def test_the_first_rule_that_matches_the_whole_path_wins():
    narrow = LayerRule(pattern="backbone/conv2d", weight_bits=8)
    wide = LayerRule(pattern="backbone/.*", quantize=False)
    config = DQMQConfig(rules=[narrow, wide])
    assert config.rule_for("backbone/conv2d") is narrow
    assert config.rule_for("backbone/conv2d_1") is wide
    other = config.rule_for("my_backbone/conv2d")
    assert other.quantize and other.weight_bits is None and other.weights is None


def test_a_layer_name_may_contain_characters_that_are_special_in_regular_expressions():
    assert DQMQConfig().rule_for("conv(2d").quantize


@pytest.mark.parametrize(
    "argument,value",
    [
        ("profiles", 0),
        ("profiles", 5),
        ("embedding_size", 0),
        ("warmup", -0.1),
        ("warmup", 0.7),
        ("settle", 1.2),
        ("initial_sigma", 0.0),
        ("final_sigma", -1.0),
        ("final_sigma", float("inf")),
        ("policy_learning_rate", -1.0),
        ("policy_learning_rate", 0),
        ("policy_learning_rate", float("nan")),
        ("policy_learning_rate", True),
        ("score_coefficient", -0.1),
        ("score_coefficient", float("nan")),
        ("entropy_coefficient", -0.1),
        ("warmup", False),
        ("profiles", True),
        ("embedding_size", True),
        ("seed", True),
        ("seed", 2**64),
        ("rules", ("conv2d",)),
    ],
)
def test_the_error_for_an_argument_out_of_range_names_the_argument(argument, value):
    with pytest.raises(ValueError, match=argument):
        DQMQConfig(**{argument: value})


def test_a_term_that_is_neither_on_nor_off_is_an_error():
    with pytest.raises(ValueError, match="pathwise='no'.*True or False"):
        ObjectiveTerms(pathwise="no")


def test_config_can_be_restored_from_json():
    config = DQMQConfig(
        rules=[LayerRule(pattern="a", weight_bits=(2, 8)), LayerRule(pattern="b", quantize=False)],
        terms=ObjectiveTerms(pathwise=False),
        profiles=3,
        policy_learning_rate=0.01,
        seed=4,
    )
    assert DQMQConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config)


def test_integers_of_numpy_are_those_of_python():
    rule = LayerRule(pattern="x", weight_bits=np.arange(3, 6), activation_bits=np.int8(8))
    config = DQMQConfig(
        seed=np.int64(3), profiles=np.int32(2), embedding_size=np.uint8(4), rules=rule
    )
    data = json.loads(json.dumps(config.to_dict()))
    assert DQMQConfig.from_dict(data) == config
    assert (config.seed, config.profiles, config.embedding_size) == (3, 2, 4)


def test_the_defaults_depend_on_the_kind_of_the_budget():
    operations, in_bytes = (DQMQConfig(seed=4).completed(kind) for kind in (False, True))
    assert (operations.settle, operations.initial_sigma, operations.final_sigma) == (0.6, 0.6, 0.3)
    assert (in_bytes.settle, in_bytes.initial_sigma, in_bytes.final_sigma) == (0.3, 0.1, 0.1)
    assert in_bytes.seed == 4 and in_bytes.completed(False) == in_bytes
    assert DQMQConfig(settle=0.9, initial_sigma=0.5).completed(True).settle == 0.9
    with pytest.raises(ValueError, match="warmup, settle"):
        DQMQConfig(warmup=0.5).completed(True)
