"""Is the difference more than chance? Paired tests over queries, by scipy.

The randomisation test flips the sign of each query's difference (Smucker, Allan and Carterette 2007,
doi:10.1145/1321440.1321528); the interval is the percentile bootstrap over queries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .result import Comparison

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .result import Arm

DRAWS = 10_000


def paired(arm: Arm, baseline: Arm, metric: str, seed: int = 0) -> Comparison:
    """Arm against baseline on the queries for which both have a value of `metric`.

    With no such query everything is 0 and p is 1; the test is exact where all sign flips can be gone through.
    """
    ours, theirs = arm.per_query.get(metric, {}), baseline.per_query.get(metric, {})
    pairs = [(ours[key], theirs[key]) for key in ours if ours[key] is not None and theirs.get(key) is not None]
    difference = np.array([a - b for a, b in pairs if a is not None and b is not None], float)
    return Comparison(
        arm=arm.label,
        baseline=baseline.label,
        metric=metric,
        n=len(difference),
        difference=float(difference.mean()) if len(difference) else 0.0,
        interval=interval(difference, seed),
        p=randomisation(difference, seed),
    )


def against(arms: Sequence[Arm], baseline: Arm, metrics: Sequence[str], seed: int = 0) -> Iterator[Comparison]:
    """Every other arm that has values per query, against `baseline`, for each metric."""
    for arm in arms:
        for metric in metrics:
            if arm is not baseline and arm.per_query.get(metric) and baseline.per_query.get(metric):
                yield paired(arm, baseline, metric, seed)


def randomisation(difference: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of the paired randomisation test on per-query differences (n,).

    >>> import numpy as np
    >>> randomisation(np.array([0.1, 0.2, 0.1, 0.3]))
    0.125
    """
    from scipy.stats import permutation_test

    difference = difference[difference != 0]  # a sign without effect: leaving it out lets more tests be exact
    if len(difference) < 2:  # of one difference, both signs are as extreme
        return 1.0
    found = permutation_test(
        (difference,), _mean, permutation_type="samples", n_resamples=DRAWS, vectorized=True, rng=_rng(seed)
    )
    return round(float(found.pvalue), 6)


def interval(difference: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of per-query differences (n,)."""
    from scipy.stats import bootstrap

    if len(difference) < 2 or np.ptp(difference) == 0:
        alone = float(difference.mean()) if len(difference) else 0.0
        return alone, alone
    found = bootstrap((difference,), _mean, n_resamples=DRAWS, method="percentile", rng=_rng(seed), batch=1000)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    mean: np.ndarray = values.mean(axis=axis)
    return mean


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
