"""What subscribers may rely on: the values of the public topics, and AsyncAPI's description of every topic.

`asyncapi.yaml` is written from here by `deploy/docs/build.py`. A contract test holds what the services publish to
these types: fields are only ever added, and what would break a reader is a new topic `.vN`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from shared.contracts import events, merges
from shared.contracts.changes import ChangeKind
from shared.contracts.rules import Relation
from shared.contracts.topics import SPECS, Topic, TopicSpec

VERSION = "1.0.0"
DEFAULT_SHARDS = 32


class Cause(msgspec.Struct, frozen=True):
    """Why it happened. `id`: the event's message id (of a merge: of the event that identified the user), the due moment
    of a tick, the rules version, or the erasure's."""

    type: Literal["event", "tick", "rules", "merge", "erase"]
    id: str


class SegmentChange(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One change of one user. `(gen, seq)` is unique and increasing within a shard; `prev_seq` is the change before it
    in this topic (0: none). `from` and `to` belong to stage and activity, and are the ids of a merge, which both users
    tell: `from` left every segment and cohort, and has no stage or activity any more. `segment` belongs to segments,
    `relation` and `city_id` (GeoNames) to cohorts. `user_erased` is the last to name a user: who keeps anything of
    them drops it. `occurred_at` is when it became true, `recorded_at` when it was noticed."""

    user_id: str
    kind: ChangeKind
    from_: str | None | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="from")
    to: str | msgspec.UnsetType = msgspec.UNSET
    segment: str | msgspec.UnsetType = msgspec.UNSET
    relation: Relation | msgspec.UnsetType = msgspec.UNSET
    city_id: str | msgspec.UnsetType = msgspec.UNSET
    occurred_at: str
    recorded_at: str
    cause: Cause
    shard: int
    gen: int
    seq: int
    prev_seq: int
    rules_version: int


class RawAddress(msgspec.Struct, frozen=True):
    """Where the bytes lie in `app.events.raw.v1`."""

    partition: int
    offset: int


class DeadLetter(msgspec.Struct, frozen=True):
    """One event that was refused: where it lies and why, never what it says. `reason` is `code` or `code:detail`;
    `source` names the write key; `replay`: it was a dead letter before, and was refused again; `prev_seq` is the dead
    letter before it in this topic (0: none)."""

    user_id: str
    reason: str
    raw: RawAddress
    source: str
    recorded_at: str
    shard: int
    gen: int
    seq: int
    prev_seq: int
    replay: bool = False


class PushOutcome(msgspec.Struct, frozen=True):
    """What became of one message. `reason` is empty where there is none, `provider` where none was asked, `chain` (of
    alerts) where it is about none. `seq` counts this topic's records within the shard, without gaps."""

    message_id: str
    user_id: str
    campaign: str
    variant: Literal["treated", "holdout"]
    outcome: Literal["sent", "suppressed", "held_out", "failed", "opened", "unknown"]
    reason: str
    provider: str
    occurred_at: str
    shard: int
    gen: int
    seq: int
    chain: str = ""


class ContextEvent(msgspec.Struct, frozen=True):
    """What was posted to `POST /v1/context`: `nws` is one GeoJSON feature, `alert` and `forecast` are Perennial's own
    forms; `trigger` is a campaign set going by hand."""

    id: str
    kind: Literal["nws", "alert", "forecast", "trigger"]
    received_at: int
    body: dict[str, Any]


PUBLIC: dict[Topic, type[msgspec.Struct]] = {
    Topic.CHANGES: SegmentChange,
    Topic.DEAD_LETTERS: DeadLetter,
    Topic.OUTCOMES: PushOutcome,
}
PRIVATE: dict[Topic, tuple[type[msgspec.Struct], ...]] = {
    Topic.EVENTS: (events.Accepted, events.Rejected, events.Moved, events.Erase, events.Readmit, events.TimeRecord),
    Topic.FEED: (events.FeedRow, events.FeedTime),
    Topic.MERGE: (merges.MergeRow,),
}
_INSTANTS = frozenset({"occurred_at", "recorded_at"})
_SAYS: dict[Topic, str] = {
    Topic.RAW: "What apps posted, byte for byte. Back ends may write to it; key: user id, partition: Java's default"
    " partitioner. Ingest moves a record that lies in another partition, and counts it.",
    Topic.EVENTS: "One decision per raw record, and time records. The first decision per `src` is the valid one.",
    Topic.FEED: "The segmenter's ledger and outbox as the notifier reads them: contiguous numbers per shard, and time.",
    Topic.MERGE: "What shards tell each other of users who turn out to be one: asked, answered with what was kept"
    " of the user, declined, erased, and events that came under an id which is part of another. In the partition of the"
    " shard it is told to; each counts once, behind the greatest (gen, seq) heard of the shard that tells it.",
    Topic.CHANGES: "Stage, activity, segment and cohort changes, and merges. At least once: apply where (gen, seq) is"
    " greater than the greatest applied of the shard.",
    Topic.CONTEXT: "Alerts and forecasts as posted. One partition, so that chains which meet are joined in one order.",
    Topic.OUTCOMES: "What became of each message: sent, suppressed, held out, failed, opened, unknown. At least once.",
    Topic.DEAD_LETTERS: "Events that were refused, with reason and address. At least once.",
}
_ABOUT = (
    "Public topics carry CloudEvents 1.0 in Kafka's binary mode with JSON values. Private topics are Perennial's own:"
    " msgpack arrays, fields by position, only ever appended. An installation may put a prefix before every topic."
    " Changes are additive; a break is a new topic `.vN`."
)
_RAW_HEADERS = ("received_at", "sent_at", "type", "message_id", "source", "mode")


def document() -> dict[str, Any]:
    """The AsyncAPI 3.0 document, as plain JSON types."""
    schemas = _schemas()
    messages: dict[str, Any] = {}
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for spec in SPECS:
        of_topic = _messages(spec.topic)
        messages |= of_topic
        channels[spec.topic.name.lower()] = _channel(spec, list(of_topic))
        if not of_topic:
            continue
        operations[f"{'receive' if spec.topic is Topic.RAW else 'send'}_{spec.topic.name.lower()}"] = {
            "action": "receive" if spec.topic is Topic.RAW else "send",
            "channel": {"$ref": f"#/channels/{spec.topic.name.lower()}"},
            "summary": "read by Perennial" if spec.topic is Topic.RAW else "written by Perennial",
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Perennial",
            "version": VERSION,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas},
    }


def _channel(spec: TopicSpec, messages: list[str]) -> dict[str, Any]:
    configuration = {"cleanup.policy": ["delete"], "retention.ms": spec.retention_ms}
    return {
        "address": spec.topic.value,
        "title": spec.topic.value,
        "summary": "public" if spec.public else "private",
        "description": _SAYS[spec.topic],
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "tags": [{"name": "public" if spec.public else "private"}],
        "bindings": {
            "kafka": {
                "topic": spec.topic.value,
                "partitions": DEFAULT_SHARDS if spec.sharded else 1,
                "topicConfiguration": configuration,
                "bindingVersion": "0.5.0",
            }
        },
    }


def _messages(topic: Topic) -> dict[str, Any]:
    if topic in PUBLIC:
        name = PUBLIC[topic].__name__
        return {
            name: _message(name, "application/json", _ref(name))
            | {"headers": _ref("CloudEventHeaders"), "bindings": {"kafka": {"key": {"type": "string"}}}}
        }
    if topic in PRIVATE:
        return {kind.__name__: _message(kind.__name__, events.PRIVATE, _ref(kind.__name__)) for kind in PRIVATE[topic]}
    if topic is Topic.CONTEXT:
        return {"ContextEvent": _message("ContextEvent", "application/json", _ref("ContextEvent"))}
    if topic is Topic.RAW:
        posted = _message("Posted", "application/json", {"description": "One event of Segment's spec, as it came."})
        return {"Posted": posted | {"headers": _ref("RawHeaders")}}
    return {}


def _message(name: str, content_type: str, payload: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "contentType": content_type, "payload": payload}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _schemas() -> dict[str, Any]:
    kinds: list[type[msgspec.Struct]] = [
        *PUBLIC.values(),
        ContextEvent,
        *(kind for several in PRIVATE.values() for kind in several),
    ]
    _, found = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    told = (merges.Asked, merges.Answered, merges.Declined, merges.Forgotten, merges.Forwarded)
    arrays: tuple[type[msgspec.Struct], ...] = (*kinds, events.Context, events.Device, *told)
    by_name = {kind.__name__: kind for kind in arrays}
    schemas = {name: _plain(_named(schema, by_name.get(name))) for name, schema in found.items()}
    for kind in PUBLIC.values():
        for name, field in schemas[kind.__name__]["properties"].items():
            if name in _INSTANTS:
                field["format"] = "date-time"
    schemas["CloudEventHeaders"] = {
        "type": "object",
        "description": "CloudEvents Kafka Protocol Binding 1.0.2, binary mode. `ce_id` is shard-gen-seq.",
        "required": ["content-type", "ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time"],
        "properties": {
            "content-type": {"const": "application/json"},
            "ce_specversion": {"const": "1.0"},
            "ce_id": {"type": "string"},
            "ce_source": {"type": "string", "format": "uri-reference"},
            "ce_type": {"type": "string"},
            "ce_time": {"type": "string", "format": "date-time"},
            "ce_subject": {"type": "string"},
            "ce_partitionkey": {"type": "string"},
        },
    }
    schemas["RawHeaders"] = {
        "type": "object",
        "description": "All optional for back ends: without `received_at` the record's time counts, without an id"
        " its address. Instants are milliseconds in decimal.",
        "properties": {name: {"type": "string"} for name in _RAW_HEADERS},
    }
    return dict(sorted(schemas.items()))


def _named(schema: dict[str, Any], kind: type[msgspec.Struct] | None) -> dict[str, Any]:
    """Names for the places of an array, which msgspec leaves out."""
    places = schema.get("prefixItems")
    if places is None or kind is None:
        return schema
    names = [*(["tag"] if kind.__struct_config__.tag is not None else []), *kind.__struct_encode_fields__]
    return {**schema, "prefixItems": [{"title": n, **_wrapped(p)} for n, p in zip(names, places, strict=True)]}


def _wrapped(schema: dict[str, Any]) -> dict[str, Any]:
    # beside a $ref, draft 7 reads nothing
    return {"allOf": [schema]} if "$ref" in schema else schema


def _plain(schema: Any) -> Any:
    """As draft 7 says it, which AsyncAPI builds upon; byte strings are binary in msgpack."""
    if isinstance(schema, list):
        return [_plain(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _plain(value) for key, value in schema.items()}
    if "prefixItems" in plain:
        plain["items"] = plain.pop("prefixItems")
    if plain.pop("contentEncoding", None):
        plain["format"] = "binary"
    if isinstance(plain.get("description"), str):
        plain["description"] = " ".join(plain["description"].split())
    return plain
