"""How a map spreads its relevance over its parts: evenly, or over a few of them."""

from __future__ import annotations

import numpy as np

from voxplain.errors import InputError


def relevance_entropy(scores: np.ndarray) -> float:
    """Shannon entropy of the parts' shares of the relevance, over its maximum log N: 0 (one part has all) to 1 (even).

    What a signed map speaks against counts as much as what it speaks for: shares are of |scores|. One part alone: 0.0.
    All scores 0, or no part: NaN, as there is nothing to share out.

    Args:
        scores: one per part, (N,).

    Raises:
        InputError: scores are not one array (N,), or one is NaN or infinite.
    """
    shares = _shares(scores)
    if shares is None:
        return np.nan
    if shares.size == 1:
        return 0.0
    held = shares[shares > 0]
    # Rounding must not leave the range: an even map has exactly 1, one part exactly 0 (and not -0).
    return float(np.clip(-(held * np.log(held)).sum() / np.log(shares.size), 0, 1) + 0.0)


def top_share(scores: np.ndarray, *, ranks: int = 1) -> float:
    """Share of the relevance that the highest ranks hold together, 0 to 1.

    Shares are of |scores|, and ranks follow them. All scores 0, or no part: NaN. More ranks than parts: 1.0.

    Args:
        scores: one per part, (N,).
        ranks: how many of the parts with the highest |score|.

    Raises:
        InputError: scores are not one array (N,), one is NaN or infinite, or ranks is below 1.
    """
    if ranks < 1:
        raise InputError(f"ranks is how many parts count, at least 1; got {ranks}")
    shares = _shares(scores)
    return np.nan if shares is None else float(min(np.sort(shares)[::-1][:ranks].sum(), 1.0))


def _shares(scores: np.ndarray) -> np.ndarray | None:
    """Each part's share of the sum of |scores|, (N,); None where that sum is 0."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise InputError(f"scores are one finite number per part, (N,); got shape {scores.shape}")
    sizes = np.abs(scores)
    if not sizes.any():
        return None
    sizes = sizes / sizes.max()  # so that tiny scores keep their digits
    shares: np.ndarray = sizes / sizes.sum()
    return shares
