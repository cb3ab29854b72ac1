"""Configuration: what to quantize, to which budget, and how the policy is trained."""

import dataclasses
import math
import numbers
import re

BUDGET_KINDS = ("size_bytes", "download_bytes", "bit_ops", "mean_bit_width")


def _check(condition, argument, value, hint):
    if not condition:
        raise ValueError(f"{argument}={value!r}: {hint}.")


# What hangs on the kind of the budget. In bytes weights alone are decided: they take a long
# fine-tuning, and a wide draw tells less of where they belong than it disturbs.
_IN_OPERATIONS = {"settle": 0.6, "initial_sigma": 0.6, "final_sigma": 0.3}
_IN_BYTES = {"settle": 0.3, "initial_sigma": 0.1, "final_sigma": 0.1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """The cost that the user allows; give exactly one.

    Attributes:
        size_bytes: Bytes of the stored file, in the target's containers.
        download_bytes: Bytes of the file under deflate (zlib level 9): what fewer bits buy where
            the container is INT8.
        bit_ops: Mean bit operations per input: multiply-accumulates x weight bits x input bits.
        mean_bit_width: Square root of the multiply-accumulate-weighted mean of weight bits x
            activation bits.

    Raises:
        ValueError: If not exactly one is given, or if it is not a positive number.

    Example:

    >>> dqmq_tf.Budget(download_bytes=50_000)
    """

    size_bytes: float | None = None
    download_bytes: float | None = None
    bit_ops: float | None = None
    mean_bit_width: float | None = None

    def __post_init__(self):
        given = [kind for kind in BUDGET_KINDS if getattr(self, kind) is not None]
        _check(len(given) == 1, "Budget", given, f"give exactly one of {', '.join(BUDGET_KINDS)}")
        number = isinstance(self.value, numbers.Real) and math.isfinite(self.value)
        _check(number and self.value > 0, self.kind, self.value, "give a positive number")

    @property
    def kind(self):
        return next(kind for kind in BUDGET_KINDS if getattr(self, kind) is not None)

    @property
    def value(self):
        return getattr(self, self.kind)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRule:
    """What holds for the layers whose path matches; in a list of rules the first match wins.

    Attributes:
        pattern: Regular expression, matched against the whole path (`"backbone/conv2d_3"`); the
            model's inputs are matched by their names.
        quantize: False leaves the layer, and the tensor that it makes, in floating point.
        weight_bits: Candidates for the layer's weights; None for all that the target has.
        activation_bits: Candidates for the tensor that the layer makes; None for all.
        weights: Names of the layer's variables to quantize; None for all that are kernels, and
            `()` for none, so that only the tensor that the layer makes is quantized.
    """

    pattern: str
    quantize: bool = True
    weight_bits: tuple | None = None
    activation_bits: tuple | None = None
    weights: tuple | None = None

    def __post_init__(self):
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"LayerRule pattern {self.pattern!r} is not a regular expression: {error}."
            ) from error
        for name in ("weight_bits", "activation_bits", "weights"):
            value = getattr(self, name)
            if isinstance(value, (int, str)):
                value = (value,)
            if value is not None:
                value = tuple(sorted(set(value)))
                if name != "weights":
                    _check(value, name, value, "give at least one, or None for all")
                object.__setattr__(self, name, value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveTerms:
    """Switches of the hybrid objective, one per term, for ablations (see `dqmq_tf.training.objective`)."""

    supervised: bool = True
    pathwise: bool = True
    curvature: bool = True
    score_function: bool = True
    model_cost: bool = True
    entropy: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class DQMQConfig:
    """How a model is quantized and its policy trained.

    Attributes:
        rules: `LayerRule`s, the first that matches a layer wins.
        terms: Which terms of the objective are on.
        quality_aware: Whether bits depend on the quality of the input; False learns static bits.
        quality_normalization: Whether the scale and shift of batch normalizations depend on the
            quality as well; where there are files, which hold one normalization, they do not.
        embedding_size: Length of the quality embedding.
        profiles: Precision profiles, 1 to 4: weights have bits of their own in each. Groups of
            samples of like quality draw them in the search, and the last fine-tuning is at them;
            `DQMQModel.freeze` takes as many by default.
        warmup: Share of the training at which the policy begins to move.
        settle: Share at which the bits are fixed for the last fine-tuning. None for 0.6, or for 0.3
            where the budget is in bytes.
        initial_sigma: Width of the bit-width distributions at the start of the search, in bits;
            None for 0.6, or for 0.1 where the budget is in bytes.
        final_sigma: Their width at its end; None for 0.3, or for 0.1 where the budget is in bytes.
        policy_learning_rate: Of the Adam that moves policy and quality normalization, and five
            times the encoder's; None suits it to the length of training.
        score_coefficient, entropy_coefficient: Weights of these terms.
        seed: Of the draws and of the encoder's and the policy's first weights.

    Raises:
        ValueError: If a value is out of range; it names the argument.
    """

    rules: tuple = ()
    terms: ObjectiveTerms = ObjectiveTerms()
    quality_aware: bool = True
    quality_normalization: bool = True
    embedding_size: int = 8
    profiles: int = 1
    warmup: float = 0.1
    settle: float | None = None
    initial_sigma: float | None = None
    final_sigma: float | None = None
    policy_learning_rate: float | None = None
    score_coefficient: float = 0.1
    entropy_coefficient: float = 0.001
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "rules", tuple(self.rules))
        for rule in self.rules:
            _check(isinstance(rule, LayerRule), "rules", rule, "give dqmq_tf.LayerRule objects")
        _check(self.profiles in (1, 2, 3, 4), "profiles", self.profiles, "give 1, 2, 3 or 4")
        aware = self.quality_aware or self.profiles == 1
        _check(aware, "profiles", self.profiles, "bits that ignore quality have one profile")
        _check(self.embedding_size >= 1, "embedding_size", self.embedding_size, "give at least 1")
        settle = _IN_OPERATIONS["settle"] if self.settle is None else self.settle
        order = 0 <= self.warmup < settle <= 1
        _check(order, "warmup, settle", (self.warmup, self.settle), "0 <= warmup < settle <= 1")
        sigmas = [sigma for sigma in (self.initial_sigma, self.final_sigma) if sigma is not None]
        positive = all(sigma > 0 for sigma in sigmas)
        _check(positive, "initial_sigma, final_sigma", sigmas, "give positive widths")

    def completed(self, in_bytes):
        """Returns the configuration with what hangs on the kind of the budget."""
        defaults = _IN_BYTES if in_bytes else _IN_OPERATIONS
        open_ = {name: v for name, v in defaults.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **open_)

    def rule_for(self, path):
        """Returns the first `LayerRule` that matches a layer's path, or one that allows all."""
        for rule in self.rules:
            if re.fullmatch(rule.pattern, path):
                return rule
        return LayerRule(pattern=re.escape(path))

    def to_dict(self):
        """Returns plain data that `from_dict` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data):
        """Returns the configuration that `to_dict` wrote."""
        rules = tuple(
            LayerRule(**{k: tuple(v) if isinstance(v, list) else v for k, v in rule.items()})
            for rule in data["rules"]
        )
        return cls(**{**data, "rules": rules, "terms": ObjectiveTerms(**data["terms"])})
