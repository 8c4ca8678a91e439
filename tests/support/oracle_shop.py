"""What someone bought and did in a shop, told again: the oracle's own, every event of it kept for ever.

Orders are asked from the whole list of what was told each time: the first telling of an order by its id counts, refunds
with an id of their own count once, one without an amount and a cancellation undo the whole.
"""

from __future__ import annotations

from typing import Any

DAY = 86_400_000
COUNTERS = {
    "guide": "guides", "wishlist": "wishlist", "coupon": "coupons", "review": "reviews", "referral": "referrals",
    "feedback": "feedback",
}  # fmt: skip
MINOR_DIGITS = {"JPY": 0, "KWD": 3}


class Purchases:
    def __init__(self) -> None:
        self.views: list[int] = []
        self.scores: list[tuple[int, int]] = []  # (when, what), in the order they came
        self.counts = dict.fromkeys(COUNTERS.values(), 0)
        self._told: dict[str, list[tuple[str, dict[str, Any]]]] = {}  # order id -> what was told of it

    def hear(self, event: dict[str, Any], signals: set[str], currency: str) -> None:
        told = event["properties"]
        if "view" in signals:
            self.views.append(event["occurred_at"])
        for signal, counter in COUNTERS.items():
            self.counts[counter] += signal in signals
        score = told.get("score")
        if "feedback" in signals and type(score) is int and 0 <= score <= 10:
            self.scores.append((event["occurred_at"], score))
        for kind in ("order", "refund", "cancellation"):
            if kind in signals and (kind == "order" or told.get("order_id") is not None):
                named = told.get("order_id")
                key = f"id {named}" if named is not None else f"event {event['message_id']}"
                of = str(told.get("currency") or currency).strip().upper()
                amount = _minor(told.get("revenue"), of)
                self._told.setdefault(key, []).append(
                    (kind, {
                        "at": event["occurred_at"],
                        "amount": _minor(told.get("total"), of) if amount is None else amount,
                        "ours": of == currency,
                        "channel": told.get("channel"),
                        "id": told.get("refund_id") if told.get("refund_id") is not None else event["message_id"],
                    })
                )  # fmt: skip

    def unite(self, other: Purchases) -> None:
        """What `other` did is theirs as well. Of an order both told of, the first telling is that of who placed it
        first."""
        self.views += other.views
        self.scores = other.scores + self.scores
        for name, n in other.counts.items():
            self.counts[name] += n
        for key, told in other._told.items():
            both = sorted((self._told.get(key, []), told), key=_placed)
            self._told[key] = both[0] + both[1]

    def orders(self) -> list[dict[str, Any]]:
        """Those that count, with what they brought."""
        found = []
        for told in self._told.values():
            placed = next((what for kind, what in told if kind == "order"), None)
            undone = any(kind == "cancellation" or (kind == "refund" and what["amount"] is None) for kind, what in told)
            if placed is None or undone:
                continue
            amount = max(0, placed["amount"] or 0)
            refunds: dict[str, int] = {}
            for kind, what in told:
                if kind == "refund":
                    refunds.setdefault(str(what["id"]), abs(what["amount"]))
            back = sum(refunds.values())
            if amount and back >= amount:
                continue
            found.append({**placed, "net": amount - back if placed["ours"] else 0})
        return found

    def last_order_at(self) -> int:
        return max((order["at"] for order in self.orders()), default=-1)

    def score(self) -> tuple[int, int]:
        """When and what: of several of one moment the one that came last."""
        newest = (-1, -1)
        for at, what in self.scores:
            newest = (at, what) if at >= newest[0] else newest
        return newest

    def measures(self) -> dict[str, int]:
        orders = self.orders()
        revenue = sum(order["net"] for order in orders)
        channels = [order["channel"] for order in orders]
        return {
            **self.counts,
            "views": len(self.views),
            "score": self.score()[1],
            "orders": len(orders),
            "order_days": len({order["at"] // DAY for order in orders}),
            "revenue": revenue,
            "average_order": revenue // len(orders) if orders else 0,
            **{f"{channel}_orders": channels.count(channel) for channel in ("online", "store", "pickup")},
        }

    def kept(self) -> dict[str, Any]:
        """What the user's row should hold of it, by name."""
        have = self.measures()
        del have["average_order"]
        newest = sorted(self.views)[-3:]
        return {
            **have, "last_order_at": self.last_order_at(), "viewed_at": newest[::-1], "scored_at": self.score()[0],
        }  # fmt: skip


def _placed(told: list[tuple[str, dict[str, Any]]]) -> tuple[bool, int]:
    at = next((what["at"] for kind, what in told if kind == "order"), None)
    return at is None, at if at is not None else told[0][1]["at"] if told else 0


def _minor(told: Any, currency: str) -> int | None:
    """29.33 dollars are 2933 cents."""
    if isinstance(told, bool) or not isinstance(told, int | float):
        return None
    digits = MINOR_DIGITS.get(currency, 2)
    scaled: float = told * 10**digits
    return round(round(scaled, 6))
