"""Metrics of weighted rows, for a bootstrap: a draw of rows is how often each of them was drawn.

    N rows ──► one function per run and metric ──► weights [N, B] ──► B values

What needs no weights (sorting, binning) is done once. With all weights one, a value is that of `graft.tasks.metrics`;
with whole numbers, that of the rows repeated so often. A value that is undefined for a draw is NaN.

Legend: N rows, B draws, C labels, K distinct scores of positive rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.tasks.metrics import confidence_bins

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
Weighted = Callable[[Floats], Floats]
"""From weights [N, B] of float32 or float64 to values [B] of the same type."""


def mean(values_N: Floats) -> Weighted:
    """The mean of a value that each row has by itself."""
    return lambda weights_NB: values_N.astype(weights_NB.dtype) @ weights_NB / weights_NB.sum(axis=0)


def perplexity(log_probabilities_N: Floats, tokens_N: Floats) -> Weighted:
    """The exponential of the mean surprise per target token."""
    sums_2N = np.stack([-log_probabilities_N, tokens_N])

    def value(weights_NB: Floats) -> Floats:
        surprise_B, tokens_B = sums_2N.astype(weights_NB.dtype) @ weights_NB
        return np.exp(surprise_B / tokens_B)

    return value


def macro_f1(true_N: Ints, predicted_N: Ints, labels: int) -> Weighted:
    """The mean F1 of the labels that occur among the drawn targets or predictions."""
    counts = _confusion(true_N, predicted_N, labels)

    def value(weights_NB: Floats) -> Floats:
        right_CB, true_CB, predicted_CB = counts(weights_NB)
        return _mean_of_ratios(2 * right_CB, true_CB + predicted_CB)

    return value


def balanced_accuracy(true_N: Ints, predicted_N: Ints, labels: int) -> Weighted:
    """The mean recall of the labels that occur among the drawn targets."""
    counts = _confusion(true_N, predicted_N, labels)

    def value(weights_NB: Floats) -> Floats:
        right_CB, true_CB, _ = counts(weights_NB)
        return _mean_of_ratios(right_CB, true_CB)

    return value


def ece(confidence_N: Floats, correct_N: npt.NDArray[np.bool_]) -> Weighted:
    """The gap between confidence and accuracy in equal-width bins, weighted by the rows in them."""
    bins_N = confidence_bins(np.asarray(confidence_N, np.float64))
    gaps_bN = np.where(bins_N == np.unique(bins_N)[:, None], confidence_N - correct_N, 0.0)
    return lambda weights_NB: np.abs(gaps_bN.astype(weights_NB.dtype) @ weights_NB).sum(axis=0) / weights_NB.sum(axis=0)


def auroc(true_N: Ints, scores_NC: Floats, columns: Sequence[int]) -> Weighted:
    """Area under the ROC curve, the mean over these columns of one label against the rest."""
    return _mean_area([_Ranking(true_N == column, scores_NC[:, column]).auroc for column in columns])


def auc_pr(true_N: Ints, scores_NC: Floats, columns: Sequence[int]) -> Weighted:
    """Average precision, the mean over these columns of one label against the rest."""
    return _mean_area([_Ranking(true_N == column, scores_NC[:, column]).auc_pr for column in columns])


class _Ranking:
    """Rows from the highest score to the lowest, cut where rows of one score that hold a positive begin and end."""

    def __init__(self, positive_N: npt.NDArray[np.bool_], score_N: Floats) -> None:
        order_N = np.argsort(-score_N, kind="stable")
        new_score_N = np.r_[True, np.diff(score_N[order_N]) != 0]
        begins, ends = np.flatnonzero(new_score_N), np.r_[np.flatnonzero(new_score_N)[1:], len(order_N)]
        ranks = np.flatnonzero(positive_N[order_N])
        blocks_K, first_K = np.unique((np.cumsum(new_score_N) - 1)[ranks], return_index=True)
        cuts = np.unique(np.r_[0, begins[blocks_K], ends[blocks_K]])
        self.positives = _runs_of(order_N[ranks], first_K, len(order_N))
        self.between_cuts = _runs_of(order_N[: cuts[-1]], cuts[:-1], len(order_N))
        self.begin_K, self.end_K = np.searchsorted(cuts, begins[blocks_K]), np.searchsorted(cuts, ends[blocks_K])

    def auroc(self, weights_NB: Floats, all_B: Floats) -> Floats:
        """Of a positive and a negative row, how often the positive one has the higher score; ties count half."""
        positive_KB, positives_KB, above_KB, through_KB = self._sums(weights_NB)
        positives_B = positives_KB[-1]
        negatives_B = all_B - positives_B
        not_lower_KB = (above_KB + through_KB - 2 * positives_KB + positive_KB) / 2
        return _over((positive_KB * (negatives_B - not_lower_KB)).sum(axis=0), positives_B * negatives_B)

    def auc_pr(self, weights_NB: Floats, all_B: Floats) -> Floats:
        """The precision at each positive row's score, averaged over the positive rows."""
        positive_KB, positives_KB, _, through_KB = self._sums(weights_NB)
        positives_B = positives_KB[-1]
        precision_KB = positives_KB / np.maximum(through_KB, 1e-9)  # none drawn: counts for nothing
        only_positives = positives_B == all_B
        return np.where(only_positives, np.nan, _over((positive_KB * precision_KB).sum(axis=0), positives_B))

    def _sums(self, weights_NB: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Weights of the positives at each score, and from it up; of all rows above it, and from it up."""
        positive_KB = self.positives @ weights_NB
        between = self.between_cuts @ weights_NB
        running = np.concatenate([np.zeros_like(between[:1]), np.cumsum(between, axis=0)])
        return positive_KB, np.cumsum(positive_KB, axis=0), running[self.begin_K], running[self.end_K]


def _runs_of(rows: Ints, begins: Ints, total: int) -> Any:
    """A matrix that sums weights [N, B] over runs of these rows, one from each beginning to the next.

    measured: twenty times as fast as np.add.reduceat along the rows.
    """
    from scipy import sparse

    return sparse.csr_array((np.ones(len(rows), np.float32), rows, np.r_[begins, len(rows)]), (len(begins), total))


def _mean_area(areas: Sequence[Callable[[Floats, Floats], Floats]]) -> Weighted:
    """The mean over labels that occur; undefined where one label alone does, as in `graft.tasks.metrics`."""

    def value(weights_NB: Floats) -> Floats:
        all_B = weights_NB.sum(axis=0)
        found = np.stack([area(weights_NB, all_B) for area in areas])
        known = np.isfinite(found)
        return _over(np.where(known, found, 0).sum(axis=0), known.sum(axis=0).astype(found.dtype))

    return value


def _confusion(true_N: Ints, predicted_N: Ints, labels: int) -> Callable[[Floats], tuple[Floats, Floats, Floats]]:
    """The weights [C, B] of the rows that are right, of each label's targets, and of its predictions."""
    true_CN, predicted_CN = (column == np.arange(labels)[:, None] for column in (true_N, predicted_N))
    members = np.concatenate([true_CN & predicted_CN, true_CN, predicted_CN])

    def counts(weights_NB: Floats) -> tuple[Floats, Floats, Floats]:
        right_CB, true_CB, predicted_CB = np.split(members.astype(weights_NB.dtype) @ weights_NB, 3)
        return right_CB, true_CB, predicted_CB

    return counts


def _mean_of_ratios(above_CB: Floats, below_CB: Floats) -> Floats:
    """The mean over the labels whose ratio is defined."""
    known = below_CB > 0
    return np.where(known, above_CB / np.where(known, below_CB, 1), 0).sum(axis=0) / known.sum(axis=0)


def _over(above: Floats, below: Floats) -> Floats:
    """The ratio, NaN where it is undefined."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
