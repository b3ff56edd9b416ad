"""Statistics over several seeds, of sampling or of training."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Statistics:
    """Statistics of a figure over several seeds.

    Attributes:
        mean: The mean over all seeds.
        std: The standard deviation; None for one seed.
        interval: The 95 % confidence interval of the mean by Student's t; None for one seed. It
            covers only what the seeds vary: seeds of sampling vary the noise, not the conditions
            or the training of the weights.
        per_seed: The values.
    """

    mean: float
    std: float | None
    interval: tuple[float, float] | None
    per_seed: list[float]


def summarize(
    values: Sequence[float], minimum: float = -math.inf, maximum: float = math.inf
) -> Statistics:
    """Compute the statistics of at least one value.

    Args:
        values: One per seed.
        minimum, maximum: The range of the mean, at which its interval is cut off.
    """
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Statistics(mean, None, None, list(values))
    std = statistics.stdev(values)
    half = student_t(n - 1) * std / math.sqrt(n)
    interval = max(minimum, mean - half), min(maximum, mean + half)
    return Statistics(mean, std, interval, list(values))


def student_t(freedom: int) -> float:
    """Return the t for which Student's t distribution lies within ± t with a probability of 95 %.

    For whole degrees of freedom, the probability is a finite sum (Abramowitz & Stegun 1964,
    26.7.3-4).
    """

    def within(t: float) -> float:
        angle = math.atan(t / math.sqrt(freedom))
        sin, cos = math.sin(angle), math.cos(angle)
        odd = freedom % 2
        term, total = (cos if odd else 1.0), 0.0
        for k in range(2 if odd else 1, freedom, 2):
            total += term
            term *= cos * cos * k / (k + 1)
        return 2 / math.pi * (angle + sin * total) if odd else sin * total

    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 0.95 else (low, middle)
    return low
