"""Configuration: what to quantize, within which budget, and how the policy is trained."""

import dataclasses
import math
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

# Budgets that Vela measures.
VELA_KINDS = ("vela_flash_bytes", "vela_cycles")
BUDGET_KINDS = ("size_bytes", "download_bytes", *VELA_KINDS, "bit_ops", "mean_bit_width")

# Defaults that depend on the kind of budget. Under a budget on the file only weight bits are learned:
# they need long fine-tuning, and wide sampling disturbs training more than it helps the search.
_OPERATION_DEFAULTS = {"settle": 0.6, "initial_sigma": 0.6, "final_sigma": 0.3}
_BYTE_DEFAULTS = {"settle": 0.3, "initial_sigma": 0.1, "final_sigma": 0.1}


def _check(is_valid: bool, argument: str, value: object, hint: str) -> None:
    if not is_valid:
        raise ValueError(f"{argument}={value!r} is not valid: {hint}.")


# In Python, True and False are numbers.
def _is_integer(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Integral)


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)


def _check_switches(settings: Any) -> None:
    """Raises `ValueError` if a field whose default is True or False has another value."""
    for field in dataclasses.fields(settings):
        if isinstance(field.default, bool):
            value = getattr(settings, field.name)
            _check(isinstance(value, bool), field.name, value, "give True or False")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """The largest cost that the quantized model may have, in one of six units.

    Bit operations count each multiply-accumulate as the product of its operands' bit-widths.

    Args:
        size_bytes: Bytes of flash: the size of the stored file, with weights in the containers that
            the target supports, and of the target's decoder (`Target.decoder_bytes`) if the file
            uses it.
        download_bytes: Size of the file in bytes after deflate compression (zlib level 9). Fewer
            bits make this number smaller even if the target stores every weight as int8.
        vela_flash_bytes: Weights, scales and other constants in bytes, as Vela encodes them for the
            NPU of the target. Only for targets that Vela compiles for.
        vela_cycles: Cycles of the NPU for one input, as Vela estimates them. Operators that run on
            the CPU are not counted. Only for targets that Vela compiles for.
        bit_ops: Bit operations per input, averaged over the inputs: the sum over all layers of
            multiply-accumulates x weight bits x input bits.
        mean_bit_width: Average bit-width: the square root of the mean of weight bits x activation
            bits, weighted by the multiply-accumulates of the layers. It is above 8 where activations
            have 16 bits or stay in floating point, which counts as 32 bits, and may be for a tiny
            network, because the operations of the quality encoder are added.

    Raises:
        ValueError: If not exactly one argument is given, or if it is not a positive, finite number.

    Example:

    >>> budget = dqmq_tf.Budget(download_bytes=50_000)
    >>> budget.kind, budget.value
    ('download_bytes', 50000)
    """

    size_bytes: float | None = None
    download_bytes: float | None = None
    vela_flash_bytes: float | None = None
    vela_cycles: float | None = None
    bit_ops: float | None = None
    mean_bit_width: float | None = None

    def __post_init__(self) -> None:
        given = [kind for kind in BUDGET_KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"Budget got {', '.join(given) or 'no argument'}: "
                f"give exactly one of {', '.join(BUDGET_KINDS)}."
            )
        is_positive = _is_number(self.value) and self.value > 0
        _check(is_positive, self.kind, self.value, "give a positive, finite number")

    @property
    def kind(self) -> str:
        """The unit of the budget: the name of the argument that was given."""
        return next(kind for kind in BUDGET_KINDS if getattr(self, kind) is not None)

    @property
    def value(self) -> float:
        """The number that was given, in the unit `kind`."""
        return getattr(self, self.kind)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRule:
    """Sets how the layers whose path matches a pattern are quantized.

    In a list of rules the first match wins. `weight_bits`, `activation_bits` and `weights` also
    accept a single value or any other sequence, and are stored as sorted tuples.

    Args:
        pattern: A regular expression that must match the whole path of a layer, such as
            `"backbone/conv2d_3"`. For an input of the model, the path is the name of the input.
        quantize: Whether to quantize the layer. If False, the layer and its output tensor stay in
            floating point.
        weight_bits: The candidate bit-widths for the weights of the layer. None allows all
            bit-widths that the target supports.
        activation_bits: The candidate bit-widths for the output tensor of the layer. None allows
            all bit-widths that the target supports.
        weights: The names of the variables of the layer to quantize. None selects all kernels. An
            empty tuple selects none, so that only the output tensor is quantized.
        user_quantizers: The quantizers of a TFMOT `QuantizeConfig`, which run in place of the
            learned ones. `quantize_annotate_layer` sets them.

    Raises:
        ValueError: If `pattern` is not a regular expression, if `weight_bits` or `activation_bits`
            is empty, or if a value is of another type.

    Example:

    >>> first = dqmq_tf.LayerRule(pattern="stem/conv2d", weight_bits=(8,))
    >>> head = dqmq_tf.LayerRule(pattern="head/.*", quantize=False)
    >>> config = dqmq_tf.DQMQConfig(rules=[first, head])
    """

    pattern: str
    quantize: bool = True
    weight_bits: tuple[int, ...] | None = None
    activation_bits: tuple[int, ...] | None = None
    weights: tuple[str, ...] | None = None
    # A `dqmq_tf.tfmot.user_quantizers.UserQuantizers`, which the ground does not import.
    user_quantizers: Any = dataclasses.field(default=None, repr=False, hash=False)

    def __post_init__(self) -> None:
        is_text = isinstance(self.pattern, str)
        _check(is_text, "pattern", self.pattern, "give a regular expression as a string")
        _check_switches(self)
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"LayerRule pattern {self.pattern!r} is not a regular expression: {error}. "
                "Escape the special characters in the path of a layer with re.escape."
            ) from error
        for name in ("weight_bits", "activation_bits", "weights"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, str) or not isinstance(value, Iterable):
                value = (value,)
            value = tuple(value)
            if name == "weights":
                _check(all(isinstance(item, str) for item in value), name, value, "give names")
            else:
                _check(all(map(_is_integer, value)), name, value, "give integers")
                _check(len(value) > 0, name, value, "give at least one, or None for all")
                value = tuple(map(int, value))
            object.__setattr__(self, name, tuple(sorted(set(value))))

    def to_dict(self) -> dict[str, Any]:
        """Returns the rule as plain data for `from_dict`."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        quantizers = data.pop("user_quantizers")
        return data if quantizers is None else {**data, "user_quantizers": quantizers.get_config()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Returns the rule that `to_dict` converted. Lists may stand for tuples, as in JSON."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        if values.get("user_quantizers") is not None:
            import keras

            quantizers = keras.saving.get_registered_object("dqmq_tf>UserQuantizers")
            values["user_quantizers"] = quantizers.from_config(values["user_quantizers"])
        return cls(**values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveTerms:
    """Switches the terms of the hybrid objective on and off, for ablation studies.

    `dqmq_tf.training.objective` describes the terms and their sources.

    Args:
        supervised: The task loss, which trains the weights and the step sizes.
        pathwise: The gradient of the task loss that reaches the mean bit-widths through the
            relaxation between neighboring bit-widths.
        curvature: The term that gives more activation bits to inputs with larger curvature (see
            `dqmq_tf.policy.curvature`).
        score_function: The policy gradient with a learned baseline.
        model_cost: The expected cost, which keeps the bits within the budget.
        entropy: The entropy bonus, which keeps the distributions from narrowing too early.

    Raises:
        ValueError: If a value is neither True nor False.

    Example:

    >>> terms = dqmq_tf.ObjectiveTerms(score_function=False)
    >>> config = dqmq_tf.DQMQConfig(terms=terms)
    """

    supervised: bool = True
    pathwise: bool = True
    curvature: bool = True
    score_function: bool = True
    model_cost: bool = True
    entropy: bool = True

    def __post_init__(self) -> None:
        _check_switches(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DQMQConfig:
    """Sets how a model is quantized and how its policy is trained.

    The method follows Wang et al. 2023, "Data Quality-aware Mixed-precision Quantization via Hybrid
    Reinforcement Learning", arXiv 2302.04453.

    Args:
        rules: `LayerRule` objects, or one of them, stored as a tuple. The first rule that matches a layer applies.
        terms: The terms of the objective that are on.
        quality_aware: Whether bit-widths depend on the quality of the input. If False, the policy
            learns static bit-widths.
        quality_normalization: Whether the scale and shift of batch normalizations depend on the
            quality as well. A file holds one normalization, so this has an effect only for targets
            that are not deployable, such as `"simulation"`.
        embedding_size: The length of the quality embedding.
        exposure: `"auto"` to train the model with and without `layers.Exposure` in front, and to keep
            the layer if it pays (see `dqmq_tf.try_exposure`). None to leave the model as it is.
        profiles: The number of precision profiles, 1 to 4. Each profile has its own weight bits.
            During the search, each group of samples of similar quality draws its own weight bits.
            The final fine-tuning uses the profiles, and `DQMQModel.freeze` keeps their number by
            default.
        warmup: The fraction of the training after which the policy starts to learn.
        settle: The fraction of the training after which the bit-widths are fixed for the final
            fine-tuning. None means 0.6, or 0.3 under a budget on the file: any but `bit_ops`,
            `mean_bit_width` and, if the policy decides activation bits, `vela_cycles`.
        initial_sigma: The width of the bit-width distributions at the start of the search, in bits.
            None means 0.6, or 0.1 under a budget on the file.
        final_sigma: Their width at the end of the search, in bits. None means 0.3, or 0.1 under a
            budget on the file.
        policy_learning_rate: The learning rate of Adam for the policy and the quality
            normalization. The quality encoder uses one fifth of it. None chooses a rate that suits
            the length of the training.
        score_coefficient: The weight of the score-function term.
        entropy_coefficient: The weight of the entropy term.
        seed: The seed of the draws and of the initial weights of the encoder and the policy.

    Raises:
        ValueError: If a value is out of range or of another type. The message names the argument.

    Example:

    >>> config = dqmq_tf.DQMQConfig(profiles=2, seed=1)
    >>> qmodel = dqmq_tf.quantize_model(model, target="android", config=config)
    """

    rules: Sequence[LayerRule] = ()
    terms: ObjectiveTerms = ObjectiveTerms()
    quality_aware: bool = True
    quality_normalization: bool = True
    embedding_size: int = 8
    exposure: str | None = None
    profiles: int = 1
    warmup: float = 0.1
    settle: float | None = None
    initial_sigma: float | None = None
    final_sigma: float | None = None
    policy_learning_rate: float | None = None
    score_coefficient: float = 0.1
    entropy_coefficient: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        rules: Any = (self.rules,) if isinstance(self.rules, LayerRule) else self.rules
        _check(isinstance(rules, Iterable), "rules", rules, "give dqmq_tf.LayerRule objects")
        object.__setattr__(self, "rules", tuple(rules))
        self._check_types()
        for rule in self.rules:
            _check(isinstance(rule, LayerRule), "rules", rule, "give dqmq_tf.LayerRule objects")
        _check(self.profiles in (1, 2, 3, 4), "profiles", self.profiles, "give 1, 2, 3 or 4")
        _check(
            self.quality_aware or self.profiles == 1,
            "profiles",
            self.profiles,
            "static bits (quality_aware=False) have one profile, so give 1",
        )
        is_known = self.exposure in (None, "auto")
        _check(is_known, "exposure", self.exposure, 'give None or "auto"')
        is_seed = -(2**62) < self.seed < 2**62
        _check(is_seed, "seed", self.seed, "give an integer between -2**62 and 2**62")
        _check(self.embedding_size >= 1, "embedding_size", self.embedding_size, "give at least 1")
        settle = _OPERATION_DEFAULTS["settle"] if self.settle is None else self.settle
        is_ordered = 0 <= self.warmup < settle <= 1
        shares = (self.warmup, settle)
        _check(is_ordered, "warmup, settle", shares, "give 0 <= warmup < settle <= 1")
        for name in ("initial_sigma", "final_sigma", "policy_learning_rate"):
            value = getattr(self, name)
            _check(value is None or value > 0, name, value, "give a positive number")
        for name in ("score_coefficient", "entropy_coefficient"):
            value = getattr(self, name)
            _check(value >= 0, name, value, "give 0 or more")

    def _check_types(self) -> None:
        """Raises `ValueError` if an argument is of another type than its default.

        Integers of any type become Python's.
        """
        _check_switches(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("profiles", "embedding_size", "seed"):
                _check(_is_integer(value), field.name, value, "give an integer")
                # Keras and TensorFlow do not take all integers of NumPy.
                object.__setattr__(self, field.name, int(value))
            elif field.name not in ("rules", "terms", "exposure"):
                is_number = value is field.default or _is_number(value)
                is_switch = isinstance(field.default, bool)
                _check(is_number or is_switch, field.name, value, "give a number")
        is_terms = isinstance(self.terms, ObjectiveTerms)
        _check(is_terms, "terms", self.terms, "give dqmq_tf.ObjectiveTerms")

    def completed(self, in_bytes: bool) -> Self:
        """Returns a copy in which the defaults that depend on the budget are filled in.

        Args:
            in_bytes: Whether the budget is on the file (see `settle`).
        """
        defaults = _BYTE_DEFAULTS if in_bytes else _OPERATION_DEFAULTS
        unset: dict[str, Any] = {k: v for k, v in defaults.items() if getattr(self, k) is None}
        return dataclasses.replace(self, **unset)

    def rule_for(self, path: str) -> LayerRule:
        """Returns the first rule that matches the path of a layer.

        If no rule matches, returns a rule that allows everything.
        """
        for rule in self.rules:
            if re.fullmatch(rule.pattern, path):
                return rule
        return LayerRule(pattern=re.escape(path))

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration as plain data for `from_dict`."""
        data = dataclasses.asdict(dataclasses.replace(self, rules=()))
        return {**data, "rules": tuple(rule.to_dict() for rule in self.rules)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Returns the configuration that `to_dict` converted.

        Args:
            data: The result of `to_dict`. Lists may stand for tuples, as in JSON.
        """
        rules = tuple(LayerRule.from_dict(rule) for rule in data["rules"])
        return cls(**{**data, "rules": rules, "terms": ObjectiveTerms(**data["terms"])})
