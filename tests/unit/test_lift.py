"""Are the intervals those of the textbooks? Compared with statsmodels and scipy, on users drawn at random."""

from __future__ import annotations

import random
import warnings
from types import SimpleNamespace

import pytest

from services.notifier.domain import lift
from services.notifier.domain.lift import MINIMUM_USERS, Arm, Difference

User = tuple[int, list[int]]
"""Sessions begun, and the screens of each that ended."""


@pytest.fixture(scope="module")
def oracle() -> SimpleNamespace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their own making, when they are imported
        import scipy.stats
        import statsmodels.regression.linear_model as models
        from statsmodels.stats import proportion, weightstats
    return SimpleNamespace(
        newcombe=proportion.confint_proportions_2indep,
        means=weightstats.CompareMeans.from_data,
        ols=models.OLS,
        chisquare=scipy.stats.chisquare,
    )


def drawn(seed: int, users: int, eager: float) -> list[User]:
    """Users who open the app the oftener the more eager; the newest session of each has not ended."""
    draw = random.Random(seed)
    found = []
    for _ in range(users):
        opens, taste = 0, draw.randint(1, 6)
        while draw.random() < eager and opens < 12:
            opens += 1
        found.append((opens, [draw.randint(0, 2 * taste) for _ in range(opens - 1)]))
    return found


def arm(users: list[User]) -> Arm:
    opens, ended, screens = zip(*((o, len(depths), sum(depths)) for o, depths in users), strict=True)
    return Arm(
        users=len(users), opened=sum(o > 0 for o in opens), opens=sum(opens), opens_squared=sum(o * o for o in opens),
        ended_users=sum(e > 0 for e in ended), ended=sum(ended), screens=sum(screens),
        ended_squared=sum(e * e for e in ended), screens_squared=sum(s * s for s in screens),
        ended_screens=sum(e * s for e, s in zip(ended, screens, strict=True)),
    )  # fmt: skip


def near(found: Difference | None, difference: float, low: float, high: float, within: float = 1e-6) -> None:
    assert found is not None
    assert (found.difference, found.low, found.high) == pytest.approx((difference, low, high), abs=within)


CASES = [(1, 30, 30, 0.3, 0.3), (2, 900, 100, 0.5, 0.4), (3, 5000, 250, 0.7, 0.6), (4, 45, 2000, 0.05, 0.6)]


@pytest.mark.parametrize(("seed", "treated", "held", "eager", "idle"), CASES)
def test_shares_are_compared_as_newcombe_does(
    oracle: SimpleNamespace, seed: int, treated: int, held: int, eager: float, idle: float
) -> None:
    a, b = arm(drawn(seed, treated, eager)), arm(drawn(-seed, held, idle))
    low, high = oracle.newcombe(a.opened, a.users, b.opened, b.users, method="newcomb")
    near(lift.share(a, b), a.opened / a.users - b.opened / b.users, low, high)


@pytest.mark.parametrize(("seed", "treated", "held", "eager", "idle"), CASES)
def test_opens_are_compared_as_welch_does(
    oracle: SimpleNamespace, seed: int, treated: int, held: int, eager: float, idle: float
) -> None:
    one, other = drawn(seed, treated, eager), drawn(-seed, held, idle)
    compared = oracle.means([o for o, _ in one], [o for o, _ in other])
    low, high = compared.tconfint_diff(usevar="unequal")
    near(lift.opens(arm(one), arm(other)), compared.d1.mean - compared.d2.mean, low, high, within=1e-5)


@pytest.mark.parametrize(
    ("seed", "treated", "held", "eager", "idle"), [(2, 900, 400, 0.6, 0.5), (3, 5000, 250, 0.7, 0.6)]
)
def test_depths_are_compared_with_users_as_clusters(
    oracle: SimpleNamespace, seed: int, treated: int, held: int, eager: float, idle: float
) -> None:
    """A regression on the side, its errors clustered by user: sessions are not drawn one by one."""
    one, other = drawn(seed, treated, eager), drawn(-seed, held, idle)
    rows = [(screens, 1.0, side, n)
            for side, users in ((1.0, one), (0.0, other))
            for n, (_, depths) in enumerate(users, len(one) if side == 0 else 0) for screens in depths]  # fmt: skip
    depths, ones, sides, users = (list(column) for column in zip(*rows, strict=True))
    fitted = oracle.ols(depths, list(zip(ones, sides, strict=True)))
    clustered = fitted.fit(cov_type="cluster", cov_kwds={"groups": users, "use_correction": False})
    low, high = clustered.conf_int()[1]
    plain = fitted.fit().conf_int()[1]
    assert high - low > 1.1 * (plain[1] - plain[0])  # the case tells the one from the other
    near(lift.depth(arm(one), arm(other)), clustered.params[1], low, high, within=0.005 * (high - low))


@pytest.mark.parametrize(("treated", "held", "percent"), [(900, 100, 10.0), (950, 50, 10.0), (500, 480, 50.0)])
def test_a_lopsided_holdout_is_noticed(oracle: SimpleNamespace, treated: int, held: int, percent: float) -> None:
    ratio = lift.sample_ratio(Arm(users=treated), Arm(users=held), percent)
    assert ratio is not None
    planned = [(treated + held) * (1 - percent / 100), (treated + held) * percent / 100]
    assert ratio.p_value == pytest.approx(oracle.chisquare([treated, held], planned).pvalue, rel=1e-9)
    assert ratio.as_planned == (held != 50)


def test_too_few_users_say_nothing() -> None:
    """A wide interval would be read as a result all the same."""
    many = arm(drawn(1, 1000, 0.7))
    few = arm(drawn(2, MINIMUM_USERS - 1, 0.7))
    for one, other in ((many, few), (few, many)):
        assert lift.share(one, other) is lift.opens(one, other) is lift.depth(one, other) is None
        assert lift.sample_ratio(one, other, 10) is None
    assert lift.share(many, arm(drawn(2, MINIMUM_USERS, 0.7))) is not None


def test_where_nobody_did_anything_the_share_alone_can_be_compared() -> None:
    nobody = Arm(users=200)
    found = lift.share(nobody, nobody)
    assert found is not None and found.low < 0 == found.difference < found.high
    assert lift.opens(nobody, nobody) is None
    assert lift.depth(nobody, nobody) is None
    assert lift.sample_ratio(nobody, nobody, 0) is lift.sample_ratio(nobody, nobody, 100) is None
