"""Times two functions alternately, so that other load on the machine affects both."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedTimes:
    """Times of two functions, and the times of the second divided by those of the first.

    Attributes:
        first_seconds, second_seconds: Median wall time of a call.
        ratio: Median of the ratios over the pairs.
        low, high: Quartiles of that ratio.
        processor_ratio: The same median for processor time, which other programs affect less.
    """

    first_seconds: float
    second_seconds: float
    ratio: float
    low: float
    high: float
    processor_ratio: float

    @property
    def ratios(self) -> dict[str, float]:
        """The ratio, its quartiles and that of processor time, by the names of the attributes."""
        return {name: getattr(self, name) for name in ("ratio", "low", "high", "processor_ratio")}


def seconds(function: Callable[[], Any]) -> tuple[float, float]:
    """Returns the wall time and the processor time of a call."""
    started = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - started[0], time.process_time() - started[1]


def compare(first: Callable[[], Any], second: Callable[[], Any], pairs: int) -> PairedTimes:
    """Calls two functions in pairs, and compares their times.

    Args:
        first, second: The functions.
        pairs: The number of pairs.
    """
    found = []
    for number in range(pairs):
        # The order alternates as well.
        if number % 2:
            after = seconds(second)
            found.append((seconds(first), after))
        else:
            found.append((seconds(first), seconds(second)))
    times = np.array(found)  # [pair, first or second, wall or processor]
    ratios = times[:, 1] / times[:, 0]
    low, ratio, high = np.percentile(ratios[:, 0], [25, 50, 75])
    medians = np.median(times[:, :, 0], axis=0)
    return PairedTimes(
        first_seconds=float(medians[0]),
        second_seconds=float(medians[1]),
        ratio=float(ratio),
        low=float(low),
        high=float(high),
        processor_ratio=float(np.median(ratios[:, 1])),
    )
