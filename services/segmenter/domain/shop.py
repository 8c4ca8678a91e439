"""What someone does in a shop, counted: orders by channel, views, coupons, opinions."""

from __future__ import annotations

from msgspec.structs import replace

from services.segmenter.domain import orders, standing
from services.segmenter.domain.compiled import InForce
from services.segmenter.domain.state import NEVER_SHOPPED, Cold, Daily, Hot, Shop
from shared.contracts.events import Accepted

SEEN = 3
"""So many of the newest views are known by their moment."""

_COUNTED = {
    "view": "views",
    "guide": "guides",
    "wishlist": "wishlist",
    "coupon": "coupons",
    "review": "reviews",
    "referral": "referrals",
    "feedback": "feedback",
}
SIGNALS = frozenset(_COUNTED) | orders.SIGNALS
MOST_SCORE = 10


def fold(
    hot: Hot, cold: Cold | None, event: Accepted, signals: frozenset[str], rules: InForce, daily: list[Daily]
) -> Cold | None:
    """Count the event, on a fresh copy of `hot`; the cold part if it changed. `cold` is looked at for orders only.
    What is counted by day goes to `daily`."""
    shop = hot.shop or NEVER_SHOPPED
    news: dict[str, object] = {
        counter: getattr(shop, counter) + 1 for signal, counter in _COUNTED.items() if signal in signals
    }
    if "view" in signals:
        news["viewed_at"] = tuple(sorted((*shop.viewed_at, event.occurred_at), reverse=True)[:SEEN])
    if "feedback" in signals and event.occurred_at >= shop.scored_at:
        score = event.properties.get("score")
        if isinstance(score, int) and not isinstance(score, bool) and 0 <= score <= MOST_SCORE:
            news |= {"score": score, "scored_at": event.occurred_at}
    changed = None
    if not orders.SIGNALS.isdisjoint(signals):
        before = cold or Cold()
        after = orders.fold(before, event, signals, rules.current.currency)
        if after is not before:
            totals = orders.totals(before)
            daily += orders.moved(before, after)
            daily += standing.reordered(hot, before, after, totals, rules)
            news |= _ordered(hot, shop, totals, orders.totals(after))
            changed = orders.bounded(after)
    if news:
        hot.shop = replace(shop, **news)
    return changed


def _ordered(hot: Hot, shop: Shop, before: orders.Totals, after: orders.Totals) -> dict[str, object]:
    """Move the totals by as much as those of the orders kept one by one; forgotten ones stay in them."""
    hot.orders += after.orders - before.orders
    hot.order_days += after.days - before.days
    hot.revenue += after.revenue - before.revenue
    moved = [now - then for now, then in zip(after.channels, before.channels, strict=True)]
    return {
        "last_order_at": after.last_at,
        "online_orders": shop.online_orders + moved[1],
        "store_orders": shop.store_orders + moved[2],
        "pickup_orders": shop.pickup_orders + moved[3],
    }
