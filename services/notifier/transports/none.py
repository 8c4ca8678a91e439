"""What stands in where no provider is configured: messages wait until one is, or until they expire."""

from __future__ import annotations

from services.notifier.transports.push import Outcome, Push, Unavailable


class NoTransport:
    name = "none"

    async def send(self, push: Push) -> Outcome:
        return Unavailable("no provider is configured", 60.0)

    async def close(self) -> None:
        return
