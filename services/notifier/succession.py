"""In which order the notifications of one chain of alerts go out: one after the other, and none that is out of date.

A provider takes calls in any order, and one that failed is tried again later: without this an older text could come to
replace a newer one. Whatever takes the place of a message that was to make itself heard does it instead.
"""

from __future__ import annotations

from services.notifier.messages import Message

Place = tuple[str, str]
"""A user, and the collapse id that what they are shown lies under."""


class Succession:
    """Of the messages a dispatcher holds, the newest of each place, and the places with one on the wire."""

    def __init__(self) -> None:
        self._newest: dict[Place, Message] = {}
        self._on_wire: set[Place] = set()

    def put(self, message: Message) -> None:
        """It waits here; one that was put back after a newer one is no newer for that."""
        if message.chain:
            newest = self._newest.get(_place(message))
            if newest is None or newest.planned_at <= message.planned_at:
                self._newest[_place(message)] = message

    def superseded(self, message: Message) -> bool:
        """Whether a newer one waits. That is as loud then as this one should have been."""
        newest = self._newest.get(_place(message))
        if newest is None or newest is message:
            return False
        if newest.action != "retract":
            newest.sound = newest.sound or message.sound
        return True

    def must_wait(self, message: Message) -> bool:
        """Whether another one of its place is on the wire, and no answer there yet."""
        return _place(message) in self._on_wire

    def begins(self, message: Message) -> None:
        if message.chain:
            self._on_wire.add(_place(message))

    def ends(self, message: Message) -> None:
        """It has been answered, whatever the answer."""
        if message.chain:
            self._on_wire.discard(_place(message))
            if message.state != "intent" and self._newest.get(_place(message)) is message:
                del self._newest[_place(message)]

    def clear(self) -> None:
        """Nothing waits here any more; what is on the wire is still to be answered."""
        self._newest.clear()


def _place(message: Message) -> Place:
    return message.user_id, message.collapse_id
