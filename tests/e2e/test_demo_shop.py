"""Does `perennial demo --pack commerce` come to what the file it imports says?"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.test_demo import summary_of
from tests.unit.test_cdnow import MONTHS, independent, lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def test_the_imported_shop_is_the_independent_count(tmp_path: Path) -> None:
    """Through gateway, broker, ingest and segmenter: an order lost, doubled or cut short on the way would show here."""
    home = tmp_path / "shop"
    found = await summary_of(home, "--pack", "commerce")
    sold = independent(MONTHS[-1])
    assert found["ok"]
    assert found["commerce"] == {
        "customers": sold.customers,
        "repeat_customers": sold.repeat,
        "loyal_customers": sold.loyal,
        "orders": sold.orders,
        "revenue": sold.revenue,
    }
    assert found["users"] == len({line.customer for line in lines()}) + 150 == sum(found["stage"].values())
    assert found["stage"]["engage"] == sold.repeat
    assert found["segment"]["customers_at_risk"] > 0 < found["segment"]["customers_lapsed"]
    assert found["events"]["rejected"] == 0
    assert "alerts" not in found

    again = await summary_of(home, "--pack", "commerce")
    assert again["ok"]
    assert again["commerce"] == found["commerce"]
