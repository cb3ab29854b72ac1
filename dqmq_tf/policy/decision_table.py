"""A table of decisions: the bit-width of each decision point for each sample."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecisionTable:
    """Holds the bit-widths per sample and decision point. `DQMQModel.decisions` returns it.

    Args:
        points: The names of the decision points. An activation has the name of the layer that
            outputs the tensor; a weight has the form `"path:variable"`.
        bits: The bit-widths, an int array of shape `[samples, points]`.
        profile: The precision profile, or in the search the weight group, of each sample, an int
            array of shape `[samples]`.
        bits_vary_by: What the bit-widths depend on: `"sample"`, `"profile"` or `"static"`.

    Example:

    >>> table = qmodel.decisions(images)
    >>> table["conv2d"].mean()
    """

    points: tuple[str, ...]
    bits: np.ndarray
    profile: np.ndarray
    bits_vary_by: str

    @classmethod
    def of(
        cls,
        decisions: Sequence[Mapping[str, np.ndarray]],
        points: tuple[str, ...],
        bits_vary_by: str,
    ) -> Self:
        """Returns the table of the decisions of a `BitWidthPolicy`.

        Args:
            decisions: What the policy returned for each batch, with arrays as values.
            points: See the class.
            bits_vary_by: See the class.
        """
        rows = [
            np.concatenate([d["activations"][..., 0], d["weights"][d["group"], :, 0]], axis=1)
            for d in decisions
        ]
        return cls(
            points=points,
            bits=np.concatenate(rows).astype("int64"),
            profile=np.concatenate([d["group"] for d in decisions]),
            bits_vary_by=bits_vary_by,
        )

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, point: str) -> np.ndarray:
        """Returns the bit-widths of one decision point, shape `[samples]`."""
        if point not in self.points:
            raise KeyError(
                f"There is no decision point {point!r}. Choose one of {', '.join(self.points)}."
            )
        return self.bits[:, self.points.index(point)]

    def mean(self) -> dict[str, float]:
        """Returns `{point: mean bit-width over the samples}`."""
        return dict(zip(self.points, self.bits.mean(axis=0).tolist()))

    def __str__(self) -> str:
        width = max(len(point) for point in self.points)
        is_static = self.bits_vary_by == "static"
        title = "static bits" if is_static else f"bits per {self.bits_vary_by}"
        rows = [
            f"{point:<{width}}  {bits.mean():5.2f}  {bits.min():3d}  {bits.max():3d}"
            for point, bits in zip(self.points, self.bits.T)
        ]
        return "\n".join([f"{title:<{width}}   mean  min  max", *rows])
