"""A table of decisions: which bit-width each sample got at each decision point."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecisionTable:
    """Bit-widths per sample and decision point.

    Attributes:
        points: Names of the decision points: activations by the layer that makes the tensor,
            weights as `"path:variable"`.
        bits: int array `[samples, points]`.
        profile: int array `[samples]`: which precision profile, or group of weights, each takes.
        bits_vary_by: `"sample"`, `"profile"` or `"static"`: what the bits differ by.
    """

    points: tuple
    bits: np.ndarray
    profile: np.ndarray
    bits_vary_by: str

    @classmethod
    def of(cls, decided, points, bits_vary_by):
        """Returns the table of decisions that `BitWidthPolicy` made, batch after batch.

        Args:
            decided: What the policy returned for each batch, as arrays.
            points, bits_vary_by: See the class.
        """
        rows = [
            np.concatenate([d["activations"][..., 0], d["weights"][d["group"], :, 0]], axis=1)
            for d in decided
        ]
        return cls(
            points=points,
            bits=np.concatenate(rows).astype("int64"),
            profile=np.concatenate([d["group"] for d in decided]),
            bits_vary_by=bits_vary_by,
        )

    def __len__(self):
        return len(self.bits)

    def __getitem__(self, point):
        """Returns the bits `[samples]` of one decision point."""
        if point not in self.points:
            raise KeyError(f"No decision point {point!r}; there are {', '.join(self.points)}.")
        return self.bits[:, self.points.index(point)]

    def mean(self):
        """Returns `{point: mean bit-width over the samples}`."""
        return dict(zip(self.points, self.bits.mean(axis=0).tolist()))

    def __str__(self):
        width = max(len(point) for point in self.points)
        rows = [
            f"{point:<{width}}  {bits.mean():5.2f}  {bits.min():3d}  {bits.max():3d}"
            for point, bits in zip(self.points, self.bits.T)
        ]
        head = f"{'bits per ' + self.bits_vary_by if self.bits_vary_by != 'static' else 'static bits':<{width}}"
        return "\n".join([f"{head}   mean  min  max", *rows])
