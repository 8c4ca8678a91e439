"""What is handed to a provider, and what may come of it: a closed set of outcomes."""

from __future__ import annotations

from typing import Protocol

import msgspec

from services.notifier.domain.alert_chain import Action


class Push(msgspec.Struct, frozen=True):
    """One message to one device. A `ttl_seconds` of 0 means now or never; an empty `collapse_id`, none.

    `action`: show it, in place of what stands under the collapse id (`replace`: something should), or take that away
    (`retract`: title and body are empty). Without `sound` the phone changes what it shows and makes no noise."""

    message_id: str
    token: str
    title: str
    body: str
    data: dict[str, str]
    collapse_id: str
    ttl_seconds: int
    high_priority: bool
    action: Action = "show"
    sound: bool = True


class Sent(msgspec.Struct, frozen=True):
    """The provider took it; `provider_ref` is its name for it (empty where the answer could not be read)."""

    provider_ref: str


class TokenDead(msgspec.Struct, frozen=True):
    """The token will never work again: remove this one, and no other of the user."""

    reason: str


class Refused(msgspec.Struct, frozen=True):
    """This message will never be taken: a bad payload, or a token of another project."""

    reason: str


class Throttled(msgspec.Struct, frozen=True):
    """Not taken. Send nothing to this provider before `retry_after_seconds` have passed."""

    retry_after_seconds: float


class Unauthorised(msgspec.Struct, frozen=True):
    """Not taken: our credentials are wrong. No message will be, until somebody mends them."""

    reason: str


class Unavailable(msgspec.Struct, frozen=True):
    """Certainly not taken: the request was never written, or the provider said that it failed."""

    reason: str
    retry_after_seconds: float | None = None


class Unknown(msgspec.Struct, frozen=True):
    """Written to the wire, and no answer that tells. It may be on the phone."""

    reason: str


Outcome = Sent | TokenDead | Refused | Throttled | Unauthorised | Unavailable | Unknown


class Transport(Protocol):
    """A way to a provider. `send` makes one attempt and never repeats one that may have arrived; it raises
    nothing but cancellation. It is used by many tasks at once."""

    @property
    def name(self) -> str: ...

    async def send(self, push: Push) -> Outcome: ...

    async def close(self) -> None: ...
