"""What is kept per user: the hot part every event touches, the cold part only some need.

Encoded as msgpack by position. The first element of a hot row is its form (`Hot`'s tag): within a form fields
are only appended, another layout is another form; the first form is still read. What is held in memory
is what is encoded, so that a user who was stored and read again is the same user. Instants are milliseconds,
-1 for never. Values are replaced, never changed in place, so that a shallow copy is a safe one.
"""

from __future__ import annotations

from typing import Any

import msgspec

from services.segmenter.domain import dedup
from services.segmenter.domain.visited import Visit, packed
from shared.contracts.events import Device

HOUR_MS = 3_600_000
CUSTOMER, REPEAT, LOYAL = 1, 2, 4
ROLES = ((CUSTOMER, "customer"), (REPEAT, "repeat"), (LOYAL, "loyal"))
"""Flags by their names in `Rates` and among the counts."""
MAX_DEVICES = 8
FORM = 2
PURPOSES = ("location", "search_history", "push")
"""Purposes of consent, by position in `Hot.consents`: appended only."""


class Shop(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a user did in a shop. `viewed_at`: the moments of the newest views, newest first. `score`: what the newest
    feedback gave (-1: none). Orders by channel are net, as all orders are."""

    last_order_at: int = -1
    online_orders: int = 0
    store_orders: int = 0
    pickup_orders: int = 0
    views: int = 0
    viewed_at: tuple[int, ...] = ()
    guides: int = 0
    wishlist: int = 0
    coupons: int = 0
    reviews: int = 0
    referrals: int = 0
    feedback: int = 0
    score: int = -1
    scored_at: int = -1


NEVER_SHOPPED = Shop()


class Hot(msgspec.Struct, array_like=True, gc=False, tag=FORM):
    """The row an owner caches. `due_at`: the earliest moment anything would change if nothing happened.

    `searched` and `added` hold at most 8 cities each (see `visited`), `consents` two bits per purpose (see
    `consent`), `ring` the last 32 message ids (see `dedup`). `context_digest` tells whether an event's context
    is the one last folded into the cold part. `flags` are CUSTOMER, REPEAT, LOYAL. `bitmap`: bit n = active n
    days before `last_day` (days since 1970); `older_days`, `months`: the days before those, and months (see
    `returns`). `orders`, `order_days` (distinct days) and `revenue` are net (see `orders`); `shop` is None for whoever
    did nothing in one. `turned_day`: the newest day on which a flag turned (see `standing`). `merged_into`: the user
    whom this one became part of; then nothing but `ring` and `spilled_hour` says anything of them. `known`: the id was
    identified, so it becomes part of no other (see `identity`).
    """

    stage: str
    stage_at: int
    activity: str
    activity_at: int
    first_seen_at: int
    last_seen_at: int
    first_activity_at: int = -1
    last_activity_at: int = -1
    session_start_at: int = -1
    session_last_at: int = -1
    session_screens: int = 0
    sessions: int = 0
    screens: int = 0
    opens: int = 0
    activities: int = 0
    last_day: int = -1
    bitmap: int = 0
    active_days: int = 0
    default_city: int = 0
    searched: bytes = b""
    added: bytes = b""
    segments: tuple[str, ...] = ()
    consents: int = 0
    flags: int = 0
    orders: int = 0
    order_days: int = 0
    revenue: int = 0
    due_at: int = -1
    rules_version: int = 0
    ring: bytes = b""
    spilled_hour: int = 0
    context_digest: bytes = b""
    first_channel: str = ""
    last_channel: str = ""
    assignment_id: str = ""
    shop: Shop | None = None
    older_days: int = 0
    months: int = 0
    turned_day: int = 0
    merged_into: str = ""
    known: bool = False


class Order(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One order by the hash of its id. `placed` is not yet true where only a refund or cancellation was told;
    `refunds` are (hash of its id, amount); `foreign`: in a currency that is not added up."""

    number: int
    at: int
    revenue: int = 0
    placed: bool = False
    void: bool = False
    refunds: tuple[tuple[int, int], ...] = ()
    channel: int = 0
    foreign: bool = False


class Claim(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Another id this user was said to be; `outcome` is ASKED, ABSORBED or REFUSED."""

    user_id: str
    outcome: int


ASKED, ABSORBED, REFUSED = 0, 1, 2


class Cold(msgspec.Struct, array_like=True, gc=False):
    """The row read only where an event's context changed, or it tells of an order or of another id: devices (newest
    last), profile, orders one by one. `forgotten_at`: the newest order that is no longer among them."""

    devices: tuple[Device, ...] = ()
    locale: str = ""
    timezone: str = ""
    app_version: str = ""
    orders: tuple[Order, ...] = ()
    forgotten_at: int = -1
    claims: tuple[Claim, ...] = ()


class Change(msgspec.Struct, frozen=True, gc=False):
    """Something that is now true of a user: a ledger row before it has a number.

    `cause_type` is event, tick, rules or merge; `occurred_at` the moment it became true, not when it was noticed.
    """

    kind: str
    payload: dict[str, object]
    occurred_at: int
    cause_type: str
    cause_id: str


Daily = tuple[int, str, str, int]
"""(day, kind, name, by how much): a count of a day that moved; `segmenter.tally_day` adds them up. Days are days since
1970, UTC, and those on which things happened, not on which they were told: what a late event or a refund makes of an
earlier day moves that day's counts. A plain tuple, for one is made for every screen."""


def consent(consents: int, purpose: str) -> bool | None:
    """What the user said of a purpose; None: nothing."""
    told = consents >> 2 * PURPOSES.index(purpose) & 3
    return told == 3 if told else None


def consenting(consents: int, purpose: str, given: bool) -> int:
    """`consents` with the purpose given or withdrawn: 01 is withdrawn, 11 given."""
    at = 2 * PURPOSES.index(purpose)
    return consents & ~(3 << at) | (3 if given else 1) << at


def told_consents(consents: int) -> dict[str, bool]:
    """Every purpose the user said something of, and what."""
    told = ((purpose, consent(consents, purpose)) for purpose in PURPOSES)
    return {purpose: given for purpose, given in told if given is not None}


encode_hot = msgspec.msgpack.Encoder().encode
_decode_hot = msgspec.msgpack.Decoder(Hot).decode
_decode_list = msgspec.msgpack.Decoder(list).decode
encode_cold = msgspec.msgpack.Encoder().encode
decode_cold = msgspec.msgpack.Decoder(Cold).decode


def decode_hot(row: bytes) -> Hot:
    """A user as stored, in this form or the first; ValidationError for any other."""
    try:
        return _decode_hot(row)
    except msgspec.ValidationError:
        values = _decode_list(row)
        # the first form has no number: it begins with the stage
        if not values or not isinstance(values[0], str):
            raise
        return _from_first_form(values)


def _from_first_form(values: list[Any]) -> Hot:
    """Visits were lists in milliseconds, consents a map, the ring eight bytes per id, the last two of them the hour
    modulo 65 536."""
    was = dict(zip(Hot.__struct_fields__, values, strict=False))
    was["searched"] = packed(Visit(*visit) for visit in was["searched"])
    was["added"] = packed(Visit(*visit) for visit in was["added"])
    consents, ring = 0, b""
    for purpose, given in was["consents"].items():
        consents = consenting(consents, purpose, given)
    about = was["last_seen_at"] // HOUR_MS
    for at in range(0, len(was["ring"]), 8):
        entry = was["ring"][at : at + 8]
        # of all hours with this remainder the one nearest to when the user was seen last
        back = (about - int.from_bytes(entry[6:], "big") + 32_768) % 65_536 - 32_768
        ring, _ = dedup.add(ring, int.from_bytes(entry[:6], "big"), about - back)
    was |= {"consents": consents, "ring": ring}
    return msgspec.convert([FORM, *was.values()], Hot)
