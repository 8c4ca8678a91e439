"""Which topics exist, who may read them, and how long each keeps its records."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

DAY_MS = 86_400_000


class Topic(StrEnum):
    """Topic names without the installation's prefix; `Names.topic` adds it."""

    RAW = "app.events.raw.v1"
    EVENTS = "app.events.v1"
    FEED = "user.feed.v1"
    MERGE = "user.merge.v1"
    CHANGES = "segment.changes.v1"
    CONTEXT = "context.events.v1"
    OUTCOMES = "push.outcomes.v1"
    DEAD_LETTERS = "dead.letters.v1"


@dataclass(frozen=True)
class TopicSpec:
    """One topic: `sharded` topics have one partition per shard, the others one in all.

    A single partition orders context events totally, so that alert chains that meet are
    joined by one handler, in one order.
    """

    topic: Topic
    sharded: bool
    retention_ms: int
    public: bool
    log_append_time: bool = False


SPECS: tuple[TopicSpec, ...] = (
    TopicSpec(Topic.RAW, True, 30 * DAY_MS, public=False, log_append_time=True),
    TopicSpec(Topic.EVENTS, True, 30 * DAY_MS, public=False),
    TopicSpec(Topic.FEED, True, 7 * DAY_MS, public=False),
    TopicSpec(Topic.MERGE, True, 7 * DAY_MS, public=False),
    TopicSpec(Topic.CHANGES, True, 30 * DAY_MS, public=True),
    TopicSpec(Topic.CONTEXT, False, 7 * DAY_MS, public=False),
    TopicSpec(Topic.OUTCOMES, True, 30 * DAY_MS, public=True),
    TopicSpec(Topic.DEAD_LETTERS, True, 30 * DAY_MS, public=True),
)


@dataclass(frozen=True)
class Names:
    """The names one installation uses in a shared cluster; `prefix` is empty for the default one."""

    prefix: str = ""

    def topic(self, topic: Topic) -> str:
        return f"{self.prefix}{topic.value}"

    def group(self, service: str) -> str:
        return f"{self.prefix}perennial.{service}"
