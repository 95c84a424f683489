"""Measures the uncertainty of means over questions by bootstrap intervals and paired tests, all seeded.

Questions are resampled one by one. Those of one dialogue are alike, so intervals over few dialogues are on the narrow
side: they tell about other questions to these dialogues, less about other dialogues.
"""

from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


class Paired(NamedTuple):
    """How B does against A over the same questions, or over the same dialogues."""

    questions: int
    mean_a: float
    mean_b: float
    difference: float
    """The mean of B - A."""
    low: float
    high: float
    """Bootstrap interval of the difference."""
    p_value: float
    """Two-sided p-value of the hypothesis that the two are equally good."""
    test: str
    only_a: int
    """Questions that A does better."""
    only_b: int


def bootstrap(values: np.ndarray, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Percentile intervals of the means of columns; NaN marks a missing value. # (N, M) -> (M, 2)

    All columns see the same resamples. A column without values, or whose resamples may have none, has NaN bounds.
    """
    present = ~np.isnan(values)
    counts = np.random.default_rng(seed).multinomial(len(values), np.full(len(values), 1 / len(values)), size=resamples)
    counts = counts.astype(np.float64)  # (R, N), for a product by BLAS
    with np.errstate(invalid="ignore"):
        means = (counts @ np.where(present, values, 0.0)) / (counts @ present)  # (R, M)
    tail = 100 * (1 - LEVEL) / 2
    return np.percentile(means, [tail, 100 - tail], axis=0).T


def paired(a: np.ndarray, b: np.ndarray, seed: int) -> Paired:
    """Tell whether B differs from A, question by question; no value may be missing. # (N,), (N,)

    The test is McNemar's exact one for scores of 0 and 1, else a permutation of the signs of the differences.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"need the same questions on both sides, got {len(a)} and {len(b)}")
    difference = b - a
    only_a, only_b = int((difference < 0).sum()), int((difference > 0).sum())
    is_binary = set(np.unique(np.concatenate([a, b]))) <= {0.0, 1.0}
    p_value = 1.0
    if len(a) > 1 and (only_a or only_b):  # one pair alone tells nothing
        p_value = _mcnemar(only_a, only_b) if is_binary else _sign_permutation(difference, seed)
    means = [float(values.mean()) for values in (a, b, difference)]
    test = "McNemar, exact" if is_binary else "permutation of signs"
    return Paired(len(a), *means, *bootstrap(difference[:, None], seed)[0].tolist(), p_value, test, only_a, only_b)


def _mcnemar(only_a: int, only_b: int) -> float:
    from scipy import stats  # seconds to import, and only comparisons need it

    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def _sign_permutation(difference: np.ndarray, seed: int) -> float:
    from scipy import stats

    rng = np.random.default_rng(seed)
    options = {"permutation_type": "samples", "vectorized": True, "n_resamples": 9999, "batch": 500, "rng": rng}
    return float(stats.permutation_test((difference,), np.mean, **options).pvalue)
