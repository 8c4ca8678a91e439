"""What did a campaign do? Users it treated beside users it held out, by what both did in the window after.

Everything is computed from sums over users, so no row of a user is needed here. Intervals are of 95 per cent and meant
for one look at the end: who looks again and again until one of them excludes zero will find one that does.
"""

from __future__ import annotations

from math import erfc, sqrt
from statistics import NormalDist

import msgspec

CONFIDENCE_PERCENT = 95
MINIMUM_USERS = 30
"""So many users (for the depth: with a session that ended) are needed on each side before anything is said."""
AS_PLANNED = 0.001
"""Below this probability the sizes of the two sides are no accident, and neither is anything else that differs."""

_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE_PERCENT / 200)


class Arm(msgspec.Struct, frozen=True):
    """Sums over the users of one side: `opened` those who began a session in the window, `opens` the sessions they
    began, `ended` those of them that are known to have ended, `screens` the screens of these; then the sums of the
    squares and products of these per user."""

    users: int = 0
    opened: int = 0
    opens: int = 0
    opens_squared: int = 0
    ended_users: int = 0
    ended: int = 0
    screens: int = 0
    ended_squared: int = 0
    screens_squared: int = 0
    ended_screens: int = 0

    @property
    def share(self) -> float:
        return self.opened / self.users if self.users else 0.0

    @property
    def opens_per_user(self) -> float:
        return self.opens / self.users if self.users else 0.0

    @property
    def depth(self) -> float:
        """Screens per session."""
        return self.screens / self.ended if self.ended else 0.0


class Difference(msgspec.Struct, frozen=True):
    """Treated less held out, and between what it lies with a confidence of CONFIDENCE_PERCENT."""

    difference: float
    low: float
    high: float


class SampleRatio(msgspec.Struct, frozen=True):
    """Whether as many are held out as were to be; `p_value`: how likely a share as odd as this one is by accident."""

    expected_percent: float
    found_percent: float
    p_value: float

    @property
    def as_planned(self) -> bool:
        return self.p_value >= AS_PLANNED


def enough(treated: Arm, holdout: Arm) -> bool:
    return min(treated.users, holdout.users) >= MINIMUM_USERS


def share(treated: Arm, holdout: Arm) -> Difference | None:
    """Difference between the shares that opened the app, 0…1. None: not enough users.

    Newcombe, Statistics in Medicine 17 (1998) 873-890, method 10: from Wilson's intervals of both shares.
    """
    if not enough(treated, holdout):
        return None
    p, q = treated.share, holdout.share
    (p_low, p_high), (q_low, q_high) = _wilson(treated), _wilson(holdout)
    return Difference(
        p - q,
        p - q - sqrt((p - p_low) ** 2 + (q_high - q) ** 2),
        p - q + sqrt((p_high - p) ** 2 + (q - q_low) ** 2),
    )


def opens(treated: Arm, holdout: Arm) -> Difference | None:
    """Difference between opens per user. None: not enough users, or nothing that varies.

    Welch, Biometrika 34 (1947) 28-35: the two sides may vary differently.
    """
    if not enough(treated, holdout):
        return None
    a, b = (_variance(arm.users, arm.opens, arm.opens_squared) / arm.users for arm in (treated, holdout))
    if a + b == 0:
        return None
    freedom = (a + b) ** 2 / (a**2 / (treated.users - 1) + b**2 / (holdout.users - 1))
    return _around(treated.opens_per_user - holdout.opens_per_user, _t(freedom) * sqrt(a + b))


def depth(treated: Arm, holdout: Arm) -> Difference | None:
    """Difference between screens per session. None: not enough users with a session that ended.

    Users are drawn, not sessions, and sessions of one user are alike: the variance of the ratio is that of the delta
    method over users (Deng, Knoblich, Lu, KDD 2018, "Applying the Delta Method in Metric Analytics").
    """
    if min(treated.ended_users, holdout.ended_users) < MINIMUM_USERS:
        return None
    spread = _ratio_variance(treated) + _ratio_variance(holdout)
    return _around(treated.depth - holdout.depth, _Z * sqrt(spread)) if spread > 0 else None


def sample_ratio(treated: Arm, holdout: Arm, holdout_percent: float) -> SampleRatio | None:
    """Whether `holdout_percent` (over 0, under 100) of all users are held out: Pearson's chi-square, one degree of
    freedom. None: not enough users."""
    users = treated.users + holdout.users
    if not enough(treated, holdout) or not 0 < holdout_percent < 100:
        return None
    expected = users * holdout_percent / 100
    chi_square = (holdout.users - expected) ** 2 * (1 / expected + 1 / (users - expected))
    return SampleRatio(holdout_percent, 100 * holdout.users / users, erfc(sqrt(chi_square / 2)))


def _wilson(arm: Arm) -> tuple[float, float]:
    """The score interval of the share that opened the app."""
    n, p, square = arm.users, arm.share, _Z**2
    middle = (p + square / (2 * n)) / (1 + square / n)
    reach = _Z / (1 + square / n) * sqrt(p * (1 - p) / n + square / (4 * n * n))
    return middle - reach, middle + reach


def _variance(n: int, total: int, squares: int) -> float:
    """Of one user; the numerator is of whole numbers, so that nothing cancels out."""
    return (n * squares - total * total) / (n * (n - 1))


def _ratio_variance(arm: Arm) -> float:
    """The variance of `arm.depth` over draws of its users."""
    n, ratio = arm.users, arm.depth
    squares = arm.screens_squared - 2 * ratio * arm.ended_screens + ratio**2 * arm.ended_squared
    return max(0.0, squares) * n / (n - 1) / arm.ended**2


def _around(difference: float, reach: float) -> Difference:
    return Difference(difference, difference - reach, difference + reach)


def _t(freedom: float) -> float:
    """Student's t instead of _Z, by Cornish and Fisher's expansion (Abramowitz and Stegun 26.7.5); with at least
    MINIMUM_USERS on each side there are at least 29 degrees of freedom, and it is right to six digits."""
    z = _Z
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
