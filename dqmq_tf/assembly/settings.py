"""How a float model was quantized, as values for a config, from which the parts are built again."""

from collections.abc import Mapping
from typing import Any

import keras

from dqmq_tf import targets
from dqmq_tf.assembly.model_parts import ModelParts, build
from dqmq_tf.config import Budget, DQMQConfig


def settings_of(parts: ModelParts) -> dict[str, Any]:
    """Returns how a model was quantized, and what was decided outside its weights.

    Args:
        parts: The `ModelParts`, with a budget.

    Returns:
        A dictionary that JSON can hold. It does not contain the float model.
    """
    budget = parts.budget
    assert budget is not None
    return {
        "target": targets.serialize(parts.target),
        "budget": {budget.kind: budget.value},
        "config": parts.config.to_dict(),
        "bit_ops": parts.bit_ops,
        "encoder_shape": parts.encoder_shape,
        "output_names": list(parts.output_names),
        "aliases": parts.aliases,
        "functions_share_scales": parts.functions_share_scales,
        "budget_is_default": parts.budget_is_default,
        "phase": parts.policy.phase,
        "profiles": parts.policy.profiles,
        "file_constant": parts.policy.file_constant,
        "counts_decoder": True,
    }


def build_again(body: keras.Model, settings: Mapping[str, Any]) -> tuple[Any, Any, ModelParts]:
    """Builds the parts of a model as its settings say, with new weights.

    Args:
        body: The float model.
        settings: What `settings_of` returned. Earlier versions saved fewer of them.

    Returns:
        What `build` returns.
    """
    target = targets.get(settings["target"])
    if not settings.get("counts_decoder", False):
        target = targets.without_decoder_cost(target)
    inputs, outputs, parts = build(
        body,
        target,
        Budget(**settings["budget"]),
        DQMQConfig.from_dict(settings["config"]),
        settings["bit_ops"],
        settings.get("output_names"),
        settings.get("aliases", ()),
        settings.get("functions_share_scales", False),
        settings.get("encoder_shape"),
    )
    parts.budget_is_default = settings.get("budget_is_default", False)
    parts.policy.phase, parts.policy.profiles = settings["phase"], settings["profiles"]
    parts.policy.file_constant = settings["file_constant"]
    return inputs, outputs, parts
