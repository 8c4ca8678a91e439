"""Is the bench's traffic what it says: repeatable, skewed as asked, and of events that the product takes?"""

from __future__ import annotations

from collections import Counter

import msgspec

from services.bench.traffic import CITIES, Crowd, decisions, event, posts
from services.ingest.domain.intake import Intake, RawRecord, Taken
from services.ingest.domain.places import locate
from services.packs import load_pack
from shared.contracts.identifiers import shard_of
from shared.gazetteer import load

NOW = 1_790_000_000_000


def test_the_same_seed_gives_the_same_acts() -> None:
    one, other = Crowd(1000, seed=7), Crowd(1000, seed=7)
    assert one.acts(one.users(500)) == other.acts(other.users(500))


def test_zipf_gives_the_first_many_times_the_tenth_and_uniform_does_not() -> None:
    zipf, even = Counter(Crowd(1000).users(50_000)), Counter(Crowd(1000, "uniform").users(50_000))
    assert 7 < zipf["u-0000000"] / zipf["u-0000009"] < 14
    assert 0.5 < even["u-0000000"] / even["u-0000009"] < 2


def test_every_message_id_is_new() -> None:
    """A repeat would be dropped as one, and the bench would measure that instead."""
    crowd = Crowd(10)
    acts = [act for _ in range(20) for act in crowd.acts(crowd.users(50))]
    assert len({act.message_id for act in acts}) == 1000


def test_posts_have_the_shape_asked_for() -> None:
    phones = [msgspec.json.decode(body)["batch"] for body in posts("phones", 20, 5, Crowd(100), NOW)]
    assert [(len(batch), len({e["userId"] for e in batch})) for batch in phones] == [(20, 1)] * 5
    mixed = msgspec.json.decode(posts("mixed", 100, 1, Crowd(10_000, "uniform"), NOW)[0])["batch"]
    assert len({e["userId"] for e in mixed}) > 90
    new = [msgspec.json.decode(body) for body in posts("newcomers", 1, 30, Crowd(30), NOW)]
    assert len({e["userId"] for e in new}) == 30
    assert {e["event"] for e in new} == {"Application Opened"}


def test_ingest_takes_every_event_and_decides_it_as_the_segmenter_is_given_it() -> None:
    """The segmenter's backlog is made without ingest; were it made otherwise, it would measure something else."""
    gazetteer, crowd = load(), Crowd(50)
    intake = Intake(load_pack("weather"), gazetteer, 8)
    cities = [locate({"city": name}, gazetteer) for name in CITIES]
    ids = [city for city in cities if isinstance(city, int)]
    assert len(ids) == len(CITIES)
    acts = crowd.acts(crowd.users(300))
    made = decisions(acts, ids, NOW, 1, lambda user: shard_of(user, 8), {})
    by_id = {one.message_id: one for several in made.values() for one in several}
    for act in acts:
        shard, value = shard_of(act.user_id, 8), msgspec.json.encode(event(act, NOW))
        verdict = intake.judge(RawRecord(shard, 0, act.user_id.encode(), value, {"type": b"track"}, NOW))
        assert isinstance(verdict, Taken), verdict
        one = by_id[act.message_id]
        assert (one.user_id, one.name, one.city_id, one.context, one.occurred_at) == (
            verdict.user_id, verdict.name, verdict.city_id, verdict.context, verdict.occurred_at,
        )  # fmt: skip


def test_decisions_form_a_chain_in_each_shard_that_goes_on() -> None:
    crowd, last = Crowd(50), {}  # type: tuple[Crowd, dict[int, int]]
    ids = list(range(len(CITIES)))
    for _ in range(2):
        before = dict(last)
        for shard, several in decisions(
            crowd.acts(crowd.users(100)), ids, NOW, 1, lambda u: shard_of(u, 4), last
        ).items():
            expected = before.get(shard, -1)
            for one in several:
                assert (one.prev, one.src) == (expected, expected + 1)
                expected = one.src
            assert last[shard] == expected
