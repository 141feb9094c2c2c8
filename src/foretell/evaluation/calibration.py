"""Whether a head's confidence tells how often its drafts stand.

Guo et al. 2017, "On calibration of modern neural networks" (arXiv 1706.04599): confidences in bins
of equal width; the expected calibration error is the mean distance between a bin's confidence and
how often it was right, weighted by how many fell into it. Here *confidence* is the probability of
the drafted token and *right* that it stands; only tokens that greedy verification gets to see
count.

Shapes: N positions.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from foretell.results.tables import AcceptedByConfidence, CalibrationError
from foretell.tally import Means, Tally, estimate

BINS = 10


def calibrate(
    tally: Tally,
    depth: int,
    documents: NDArray[np.int64],
    confidence: Tensor,
    stands: Tensor,
    judged: Tensor,
) -> None:
    """Count confidences at one depth.

    Args:
        tally: by depth and bin.
        depth: k.
        documents: (N,), of the positions.
        confidence: (N,), probability of the drafted token.
        stands: (N,), whether it does.
        judged: (N,), whether it counts.
    """
    seen = judged.cpu().numpy()
    certainty = confidence.cpu().numpy().astype(np.float64)[seen]
    bins = np.minimum((certainty * BINS).astype(int), BINS - 1).tolist()
    values = {"confidence": certainty, "acceptance": stands.cpu().numpy()[seen]}
    tally.add((depth,), documents[seen], values, bins)


def expected_error(tally: Tally, depth: int) -> Means:
    """Σ_bins |Σ confidence - Σ acceptance| / positions."""
    gap = total = np.zeros(1)
    for number in range(BINS):
        where = {"depth": depth, "bin": number}
        sure = tally.total("confidence", **where)
        gap = gap + np.abs(sure - tally.total("acceptance", **where))
        total = total + tally.counts("acceptance", **where)
    error = np.full(gap.shape, np.nan)
    counted = np.isfinite(tally.means("acceptance", depth=depth))
    np.divide(gap, total, out=error, where=counted)
    return error


def calibration_rows(tally: Tally, method: str) -> list[CalibrationError | AcceptedByConfidence]:
    """The error of every depth, then its bins that are not empty."""
    rows: list[CalibrationError | AcceptedByConfidence] = []
    for depth in sorted(int(depth) for depth in tally.keys("depth")):
        error = estimate(expected_error(tally, depth))
        rows.append(CalibrationError(method=method, depth=depth, ece=error))
        for number in range(BINS):
            where = {"depth": depth, "bin": number}
            if count := tally.count("acceptance", **where):
                rows.append(
                    AcceptedByConfidence(
                        method=method,
                        depth=depth,
                        bin=number,
                        positions=count,
                        **tally.estimates(**where),
                    )
                )
    return rows
