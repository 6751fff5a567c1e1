"""From which dose on does a measure stand out?"""

from collections.abc import Iterable


def onset(doses: Iterable[float], lows: Iterable[float], limit: float) -> float | None:
    """The smallest dose from which on every interval lies above a limit.

    Args:
        doses: Dose of each model, such as its fraction of bad data; several may have the same.
        lows: Lower end of each model's interval.
        limit: What it has to exceed, such as zero or the largest value among benign models.

    Returns:
        None if the models of the largest dose do not exceed it either.
    """
    pairs = sorted(zip(doses, lows, strict=True), reverse=True)
    below = max((dose for dose, low in pairs if low <= limit), default=float("-inf"))
    above = [dose for dose, _ in pairs if dose > below]
    return min(above, default=None)
