"""What reaches a shop: orders told twice and late, refunds before their orders, in part, whole; views, opinions."""

from __future__ import annotations

from typing import Any

from tests.support.traffic import DAY, KINDS, Traffic, instant

SHOP_KINDS = {
    "Product Viewed": 30, "Order Completed": 18, "Order Refunded": 6, "Order Cancelled": 3, "Guide Viewed": 4,
    "Coupon Applied": 3, "Feedback Given": 4, "Product Reviewed": 2, "Referral Shared": 2, "Product Added to Wishlist": 3,
    "Application Opened": 8, "Application Uninstalled": 1,
}  # fmt: skip


class ShopTraffic(Traffic):
    """Events of `Traffic`, most of them made over into those of a shop, with few order ids for each user."""

    def event(self, now: float) -> dict[str, Any]:
        before = self._count
        event = super().event(now)
        if self._count == before or event.get("event") not in KINDS or event.get("type") != "track":
            return event
        roll = self._random
        made = {**event, "event": roll.choices(list(SHOP_KINDS), list(SHOP_KINDS.values()))[0], "properties": {}}
        if roll.random() < 0.1:
            made["timestamp"] = instant(now - roll.random() * 29 * DAY)
        if made["event"].startswith("Order"):
            made["properties"] = self._order()
        elif made["event"] == "Feedback Given":
            made["properties"] = {"score": roll.randint(-1, 11)}
        self._sent[-1] = made
        return made

    def _order(self) -> dict[str, Any]:
        roll = self._random
        told: dict[str, Any] = {"order_id": roll.randrange(9)} if roll.random() < 0.95 else {}
        if roll.random() < 0.8:
            told["revenue"] = roll.choice([0.0, 3.5, 29.33, 7, 250.0])
        if roll.random() < 0.3:
            told["refund_id"] = roll.choice(["r1", "r2"])
        if roll.random() < 0.2:
            told["currency"] = roll.choice(["USD", "EUR", "JPY"])
        return told | {"channel": roll.choice(["online", "store", "pickup"])}
