"""How far the values of several draws, or of several trainings, lie apart."""

import math
import statistics
from collections.abc import Sequence
from typing import Any


def summarize(
    values: Sequence[float], least: float = -math.inf, most: float = math.inf
) -> dict[str, Any]:
    """Mean, standard deviation and the mean's 95 % interval by Student's t.

    The interval is cut off at ``least`` and ``most``, beyond which the mean cannot be.

    The interval is that of the draws: of other noise for the same conditions and the same
    weights, not of another training. From one value there is neither.
    """
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return {"mean": mean, "sd": None, "interval": None, "each": list(values)}
    sd = statistics.stdev(values)
    half = student_t(n - 1) * sd / math.sqrt(n)
    interval = [max(least, mean - half), min(most, mean + half)]
    return {"mean": mean, "sd": sd, "interval": interval, "each": list(values)}


def student_t(freedom: int, confidence: float = 0.95) -> float:
    """Where Student's t with so many degrees of freedom lies within ± with that probability.

    The probability is a finite sum for whole degrees (Abramowitz & Stegun 1964, 26.7.3-4).
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
        low, high = (middle, high) if within(middle) < confidence else (low, middle)
    return low
