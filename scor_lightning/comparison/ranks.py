"""Mean ranks of methods over several data sets, and their tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from scor_lightning.comparison.intervals import Values
from scor_lightning.comparison.statistics import holm

ENOUGH = 6  # minimum number of data sets for tests of ranks
LEVEL = 0.05


@dataclass(frozen=True)
class Ranking:
    """The ranks of methods over data sets; the best method has rank 1, and ties share the mean of their ranks.

    Attributes:
        methods: Names of the M methods.
        ranks: Rank on each data set, ``[D, M]``.
        mean_ranks: Their means, ``[M]``.
        friedman_p: p-value of Friedman's test that all methods rank equally; None below six data sets or three methods.
        critical_difference: Nemenyi's critical difference: mean ranks further apart differ at the 5 % level; None below six
            data sets.
        pairs: p-value of Wilcoxon's signed-rank test over the data sets by pair of methods, corrected by Holm's method; empty
            below six data sets.
    """

    methods: tuple[str, ...]
    ranks: Values
    mean_ranks: Values
    friedman_p: float | None
    critical_difference: float | None
    pairs: dict[tuple[str, str], float]

    def groups(self) -> list[list[str]]:
        """Return the largest groups of methods, best first, whose mean ranks lie within the critical difference."""
        if self.critical_difference is None:
            return []
        order = np.argsort(self.mean_ranks, kind="stable")
        groups: list[list[int]] = []
        for i, first in enumerate(order):
            reach = [j for j in order[i:] if self.mean_ranks[j] - self.mean_ranks[first] < self.critical_difference]
            if len(reach) > 1 and not any(set(reach) <= set(group) for group in groups):
                groups.append(reach)
        return [[self.methods[j] for j in group] for group in groups]


def rank(values: Values, methods: Sequence[str], lower_is_better: bool = False) -> Ranking:
    """Rank methods over data sets.

    Source: Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, 2006.

    Args:
        values: A measure of each method on each data set, finite ``[D, M]``.
        methods: Names of the M >= 2 methods.
        lower_is_better: Whether the lowest value has rank 1.

    Example:
        >>> ranking = rank(np.array([[0.8, 0.9, 0.7], [0.6, 0.6, 0.5]]), ["a", "b", "c"])
        >>> ranking.mean_ranks.tolist(), ranking.friedman_p
        ([1.75, 1.25, 3.0], None)
    """
    from scipy.stats import friedmanchisquare, rankdata, studentized_range, wilcoxon

    values = values.round(9)  # means of the same recalls differ only by rounding
    ranks = rankdata(values if lower_is_better else -values, axis=1)
    data_sets, number = values.shape
    friedman_p, critical, pairs = None, None, {}
    if data_sets >= ENOUGH:
        if number > 2:  # required by scipy
            friedman_p = float(friedmanchisquare(*values.T).pvalue) if np.ptp(ranks) else 1.0
        quantile = studentized_range.ppf(1 - LEVEL, number, np.inf) / np.sqrt(2)
        critical = float(quantile * np.sqrt(number * (number + 1) / (6 * data_sets)))
        found = {
            (methods[a], methods[b]): float(wilcoxon(values[:, a], values[:, b]).pvalue)
            if (values[:, a] != values[:, b]).any()
            else 1.0
            for a, b in combinations(range(number), 2)
        }
        pairs = holm(found)
    return Ranking(tuple(methods), ranks, ranks.mean(axis=0), friedman_p, critical, pairs)
