"""Do records that were once written still read, and do new ones still say what the old ones said?

The samples are what the first version wrote. They are only ever added to, never changed: a sample that has to be
changed is a broken reader somewhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from jsonschema import Draft7Validator, FormatChecker

from services.notifier.domain.recipient import Recipient, decode_recipient
from services.notifier.messages import OutcomeRow
from services.notifier.publish import Publisher as OutcomePublisher
from services.segmenter.domain import dedup
from services.segmenter.domain.state import Cold, Hot, consenting, decode_cold, decode_hot, told_consents
from services.segmenter.domain.visited import Visit, packed, visits
from services.segmenter.publish import Publisher as ChangePublisher
from shared.contracts.asyncapi import PUBLIC
from shared.contracts.events import (
    Accepted,
    Context,
    Device,
    Erase,
    FeedRow,
    FeedTime,
    Moved,
    Readmit,
    Rejected,
    TimeRecord,
    decode_decision,
    decode_feed,
)
from shared.contracts.topics import Names, Topic
from shared.data.ledger import CHANGE_KINDS, LedgerRow
from shared.kafka.sender import Record

ROOT = Path(__file__).resolve().parents[2]
SAMPLES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "samples" / "public.json").read_text())
DEVICE = Device("d-1", "ios", "t-1")


def published(sample: dict[str, Any]) -> tuple[str, Record]:
    """Topic and record of a sample's row, as today's code publishes it."""
    row = sample["row"]
    if sample["topic"] == Topic.OUTCOMES:
        records = OutcomePublisher(Names()).row(OutcomeRow(**row)).records
    else:
        records = ChangePublisher(Names()).row(LedgerRow(**row)).records[1:]
    assert len(records) == 1
    return records[0]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s["name"])
def test_public_records_only_gain_fields(sample: dict[str, Any]) -> None:
    """A subscriber written against the first version reads every later one."""
    topic, record = published(sample)
    assert topic == sample["topic"]
    assert record.key is not None and record.key.decode() == sample["key"]
    assert contains(json.loads(record.value), sample["value"])
    headers = {name: value.decode() for name, value in record.headers}
    assert len(headers) == len(record.headers)
    assert contains(headers, sample["headers"])


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s["name"])
def test_public_records_are_as_asyncapi_says(sample: dict[str, Any]) -> None:
    """What is published is built by hand, what is documented comes from types: here they meet."""
    document = yaml.safe_load((ROOT / "asyncapi.yaml").read_text())
    kind = PUBLIC[Topic(sample["topic"])]
    _, record = published(sample)
    value = json.loads(record.value)
    msgspec.convert(value, kind)
    assert set(value) <= {kind.__struct_encode_fields__[n] for n in range(len(kind.__struct_fields__))}
    for name, part in (
        (kind.__name__, value),
        ("CloudEventHeaders", {name: text.decode() for name, text in record.headers}),
    ):
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        Draft7Validator(schema, format_checker=FormatChecker()).validate(part)


def test_every_kind_of_public_record_has_a_sample() -> None:
    """A new kind of change without a sample would be free to change."""
    written = {sample["row"]["kind"] for sample in SAMPLES if sample["topic"] == Topic.CHANGES}
    assert written == CHANGE_KINDS
    assert {sample["topic"] for sample in SAMPLES} == {topic.value for topic in PUBLIC}
    outcomes = {sample["row"]["outcome"] for sample in SAMPLES if sample["topic"] == Topic.OUTCOMES}
    assert outcomes == {"sent", "suppressed", "held_out", "failed", "opened", "unknown"}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s["name"])
def test_public_records_are_cloudevents_to_the_cloudevents_sdk(sample: dict[str, Any]) -> None:
    """The SDK is the oracle: what it cannot read, no one's framework reads."""
    kafka = pytest.importorskip("cloudevents.core.bindings.kafka", reason="the cloudevents SDK is not installed")
    formats = pytest.importorskip("cloudevents.core.formats.json")
    _, record = published(sample)
    message = kafka.KafkaMessage(dict(record.headers), record.key, record.value)
    event = kafka.from_binary(message, formats.JSONFormat())
    row = sample["row"]
    assert event.get_specversion() == "1.0"
    assert event.get_id() == f"{row['shard']}-{row['gen']}-{row['seq']}"
    assert event.get_subject() == row["user_id"]
    assert event.get_extension("partitionkey") == row["user_id"]
    assert round(event.get_time().timestamp() * 1000) == row["recorded_at"]
    assert event.get_data() == json.loads(record.value)


def test_decisions_written_by_the_first_version_read_the_same() -> None:
    """`app.events.v1` is kept for 30 days, across upgrades."""
    context = Context(DEVICE, "en-US", "America/Chicago", "1.2", "ads")
    digest = bytes(range(8))
    assert decode_decision(
        bytes.fromhex(
            "9fa1610706c408000102030405060703a3752d31a36d2d31ad43697479205365617263686564cf0000019b76daa800cf0000019b76da"
            "abe8a46c697665a56c6f63616cce00477c5881a463697479a644616c6c61739593a3642d31a3696f73a3742d31a5656e2d5553af416d"
            "65726963612f4368696361676fa3312e32a3616473"
        )
    ) == Accepted(
        7, 6, digest, 3, "u-1", "m-1", "City Searched", 1767225600000, 1767225601000, "live", "local", 4684888,
        {"city": "Dallas"}, context,
    )  # fmt: skip
    assert decode_decision(
        bytes.fromhex(
            "9aa1720807c408000000000000000003a3752d31a36d2d32aa6d697373696e675f6964cf0000019b76daabe8a56c6f63616c"
        )
    ) == Rejected(8, 7, bytes(8), 3, "u-1", "m-2", "missing_id", 1767225601000, "local")
    assert decode_decision(bytes.fromhex("96a16d0908c40800000000000000000304")) == Moved(9, 8, bytes(8), 3, 4)
    assert decode_decision(
        bytes.fromhex("98a1650a09c408000000000000000003a3752d31a465722d31cf0000019b76daafd0")
    ) == Erase(10, 9, bytes(8), 3, "u-1", "er-1", 1767225602000)
    assert decode_decision(
        bytes.fromhex("98a1750b0ac408000000000000000003a3752d31a465722d32cf0000019b76daafd0")
    ) == Readmit(11, 10, bytes(8), 3, "u-1", "er-2", 1767225602000)
    assert decode_decision(bytes.fromhex("95a17409c408000000000000000003cf0000019b76daafd0")) == TimeRecord(
        9, bytes(8), 3, 1767225602000
    )


def test_feed_rows_written_by_the_first_version_read_the_same() -> None:
    """`user.feed.v1` is kept for seven days, across upgrades."""
    assert decode_feed(
        bytes.fromhex(
            "9ca166010504a3752d31ad73746167655f6368616e67656482a466726f6da57265616368a2746fa761637175697265cf0000019b76da"
            "a800cf0000019b76daaddc92a56576656e74a36d2d310703"
        )
    ) == FeedRow(
        1, 5, 4, "u-1", "stage_changed", {"from": "reach", "to": "acquire"}, 1767225600000, 1767225601500,
        ("event", "m-1"), 7, 3,
    )  # fmt: skip
    assert decode_feed(bytes.fromhex("94a1740105cf0000019b76daafd0")) == FeedTime(1, 5, 1767225602000)


def test_rows_of_users_written_by_the_first_version_read_the_same() -> None:
    """Rows in Postgres outlive every version: a row says its form, the first one by having no number."""
    hot = decode_hot(
        bytes.fromhex(
            "dc0023a76163717569726501a36e657702030405060708090a0b0c0d0e0f10119193ce00477c5802129193ce004e4185011391aa6163"
            "746976655f33306481a470757368c3031415161718c408727272727272727219c4086363636363636363a3616473a3776562a3752d30"
        )
    )
    first = Hot(
        "acquire", 1, "new", 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, packed([Visit(4684888, 2, 0)]),
        packed([Visit(5128581, 1, 0)]), ("active_30d",), consenting(0, "push", True), 3, 20, 21, 22, 23, 24,
        dedup.add(b"", int.from_bytes(b"r" * 6, "big"), 0x7272)[0], 25, b"c" * 8, "ads", "web", "u-0",
    )  # fmt: skip
    assert hot == first
    assert (visits(hot.searched), told_consents(hot.consents)) == ([Visit(4684888, 2, 0)], {"push": True})
    assert first == decode_hot(
        bytes.fromhex(
            "dc002402a76163717569726501a36e657702030405060708090a0b0c0d0e0f1011c40a0000000000477c580002c40a00000000004e4185"
            "000191aa6163746976655f33306430031415161718c40b727272727272000000727219c4086363636363636363a3616473a3776562a375"
            "2d30"
        )
    )
    assert decode_cold(
        bytes.fromhex("949193a3642d31a3696f73a3742d31a5656e2d5553af416d65726963612f4368696361676fa3312e32")
    ) == Cold((DEVICE,), "en-US", "America/Chicago", "1.2")
    assert decode_recipient(
        bytes.fromhex(
            "9aa3752d319193a3642d31a3696f73a3742d31c3a5656e2d5553af416d65726963612f4368696361676fa761637175697265a36e6577"
            "ce00477c5891ce004e4185a3752d30"
        )
    ) == Recipient(
        "u-1", (DEVICE,), True, "en-US", "America/Chicago", "acquire", "new", 4684888, (5128581,), "u-0"
    )  # fmt: skip


def contains(found: Any, sample: Any) -> bool:
    """Whether everything the sample says is still said, in the same words."""
    if isinstance(sample, dict):
        return isinstance(found, dict) and all(k in found and contains(found[k], v) for k, v in sample.items())
    return bool(found == sample)
