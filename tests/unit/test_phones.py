"""Do the simulated phones post what phones would, and the same each time?"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from services.demo import forecasts, habits, phones, weather
from services.demo.habits import DAY_MS, Post
from services.demo.past import Past
from services.demo.phones import HABITS, Person
from services.ingest.domain.intake import Intake, RawRecord, Refused, Taken
from services.local.program import LocalError
from services.notifier.context.alerts import from_contract
from services.notifier.context.forecasts import from_contract as read_forecast
from services.notifier.context.nws import Alert, parse
from services.packs import load_pack
from services.segmenter.domain.compiled import Compiled, InForce
from services.segmenter.domain.decide import decide
from shared.contracts.events import Accepted
from shared.contracts.identifiers import shard_of
from shared.gazetteer import load
from shared.process.clock import parse_instant

NOON = parse_instant("2026-03-10T12:00:00Z")
HOURS = [NOON - 12 * 3_600_000 + 1000, NOON, NOON + 12 * 3_600_000 - 30_000]
COUNT = 3000


@pytest.fixture(scope="module")
def everyone() -> list[Person]:
    return phones.people(7, COUNT, load())


def test_the_same_seed_makes_the_same_people(everyone: list[Person]) -> None:
    assert phones.people(7, COUNT, load()) == everyone
    assert phones.people(8, COUNT, load()) != everyone


def test_more_phones_leave_the_first_ones_as_they_are(everyone: list[Person]) -> None:
    """A person follows from the seed and their number alone, not from how many others there are."""
    assert phones.people(7, 50, load()) == everyone[:50]


def test_people_live_where_people_live(everyone: list[Person]) -> None:
    """Within what chance allows (four standard deviations), each large state has its share of the population."""
    gazetteer = load()
    cities = [place for city_id in gazetteer.by_same("000000") if (place := gazetteer.get(city_id))]
    population = Counter[str]()
    for place in cities:
        population[place.state] += place.population
    homes = Counter(person.home.state for person in everyone if person.home)
    settled, total = sum(homes.values()), sum(population.values())
    for state in ("CA", "TX", "FL", "NY", "WA"):
        share = population[state] / total
        spread = (settled * share * (1 - share)) ** 0.5
        assert abs(homes[state] - settled * share) < 4 * spread, state


def test_shares_of_habits_tokens_and_consents_are_as_declared(everyone: list[Person]) -> None:
    found = Counter(person.habit for person in everyone)
    for habit, percent in HABITS.items():
        assert abs(found[habit] / COUNT - percent / 100) < 0.04, habit
    assert 0.03 < sum(person.token is None for person in everyone) / COUNT < 0.07
    assert 0.025 < sum(not person.push_allowed for person in everyone) / COUNT < 0.055


def test_those_who_deleted_the_app_are_sent_one_thing_at_most(everyone: list[Person]) -> None:
    """Their token is found dead by it; a second push at the same time would end one way or the other by chance."""
    deleted = [person for person in everyone if person.deleted]
    assert len(deleted) > 20
    for person in deleted:
        assert not person.opens_today and not person.comes_back and not person.added and person.home is None
    assert 20 < sum(person.comes_back for person in everyone) < 80
    assert 20 < sum(person.leaves for person in everyone) < 80


def test_what_answers_a_push_happens_after_it_was_sent(everyone: list[Person]) -> None:
    """Lift counts what is done after the moment of the push, to the millisecond."""
    for post in (habits.tap(everyone[0], "2603-abc", NOON), habits.comeback(everyone[0], 0, NOON)):
        assert {event["timestamp"] for event in post.body["batch"]} == {post.body["sentAt"]}


def test_ids_are_unique_and_whoever_is_new_is_someone_else_in_a_later_run(everyone: list[Person]) -> None:
    assert len({person.user_id for person in everyone}) == COUNT
    later = phones.people(7, COUNT, load(), run=1)
    for before, after in zip(everyone, later, strict=True):
        assert (before.user_id == after.user_id) == (before.habit not in ("newcomer", "unopened"))


def everything(person: Person, now_ms: int) -> list[Post]:
    return [post for post in (habits.history(person, now_ms), habits.arrival(person, 0, now_ms)) if post]


def test_everyone_posts_something_and_every_message_id_once(everyone: list[Person]) -> None:
    seen: set[str] = set()
    for person in everyone:
        posts = everything(person, NOON)
        assert posts, person
        for event in (event for post in posts for event in post.body["batch"]):
            assert event["userId"] == person.user_id
            assert event["messageId"] not in seen
            seen.add(event["messageId"])


def accepted(posts: list[Post], intake: Intake, now_ms: int) -> list[Accepted]:
    out: list[Accepted] = []
    for post in posts:
        mode = b"import" if post.path == "/v1/import" else b"live"
        sent = post.body.get("sentAt")
        headers = {"mode": mode, **({"sent_at": str(parse_instant(sent)).encode()} if sent else {})}
        for event in post.body["batch"]:
            user = event["userId"]
            raw = RawRecord(shard_of(user, 32), len(out), user.encode(), msgspec.json.encode(event), headers, now_ms)
            taken = intake.judge(raw)
            assert isinstance(taken, Taken), (event, taken)
            out.append(
                Accepted(
                    len(out),
                    len(out) - 1,
                    b"",
                    1,
                    taken.user_id,
                    taken.message_id,
                    taken.name,
                    taken.occurred_at,
                    now_ms,
                    taken.mode,
                    taken.source,
                    taken.city_id,
                    taken.properties,
                    taken.context,
                )
            )
    return out


def test_counts_do_not_depend_on_the_hour_of_the_run(everyone: list[Person]) -> None:
    """The product's own fold puts everyone into the same stage and activity at midnight, noon and midnight."""
    rules = load_pack("weather")
    intake, in_force = Intake(rules, load(), 32), InForce(Compiled(1, rules), ((0, Compiled(1, rules)),))
    wanted = {
        "unopened": "new", "newcomer": "new", "quiet": "at_risk", "returning": "reactivated", "silent": "inactive",
        "lapsed": "lapsed", "regular": "active",
    }  # fmt: skip
    for person in everyone[:400]:
        ends = set()
        for now_ms in HOURS:
            hot = cold = None
            for event in accepted(everything(person, now_ms), intake, now_ms):
                outcome = decide(hot, cold, event, now_ms, in_force)
                assert not outcome.duplicate
                hot, cold = outcome.hot, outcome.cold or cold
            assert hot is not None
            ends.add((hot.stage, hot.activity, hot.active_days))
        assert len(ends) == 1, (person, ends)
        assert ends.pop()[1] == wanted.get(person.habit) or person.habit == "settled"


def test_visits_are_exactly_as_many_events_as_asked_and_the_same_each_time(everyone: list[Person]) -> None:
    def posts(total: int) -> list[Post]:
        found = habits.budgeted(habits.visits(7, 0, everyone), total)
        return [visit.post(0, NOON, most) for visit, most in found]

    for total in (0, 1, 2, 99, 2000):
        assert sum(post.events * post.copies for post in posts(total)) == total
    assert posts(500) == posts(500)


def test_nobody_looks_at_the_app_without_people() -> None:
    assert list(habits.visits(7, 0, [])) == []


def test_every_kind_of_fault_is_refused_for_its_own_reason(everyone: list[Person]) -> None:
    intake = Intake(load_pack("weather"), load(), 32)
    person, reasons = everyone[0], []
    for kind in range(1, habits.FAULTS + 1):
        visit = habits.Visit(person, kind, 1, None, kind, 1)
        post = visit.post(0, NOON, visit.events)
        user = person.user_id
        headers = {"sent_at": str(NOON).encode()}
        verdicts = [
            intake.judge(RawRecord(shard_of(user, 32), 0, user.encode(), msgspec.json.encode(event), headers, NOON))
            for event in post.body["batch"]
        ]
        refused = [verdict.reason.partition(":")[0] for verdict in verdicts if isinstance(verdict, Refused)]
        assert len(refused) == 1
        reasons += refused
    assert reasons == ["unknown_city", "pii", "future", "invalid_field", "missing_event"]


def test_some_visits_are_faulty_and_some_are_posted_twice(everyone: list[Person]) -> None:
    found = list(islice(habits.visits(7, 0, everyone), 4000))
    assert 0.015 < sum(visit.fault > 0 for visit in found) / 4000 < 0.04
    assert 0.01 < sum(visit.copies == 2 for visit in found) / 4000 < 0.03


def test_a_tap_follows_from_the_person_and_the_push_alone() -> None:
    tapped = [phones.taps(7, f"demo-{n}", "welcome", 1) for n in range(2000)]
    assert 0.2 < sum(tapped) / 2000 < 0.28
    assert tapped == [phones.taps(7, f"demo-{n}", "welcome", 1) for n in range(2000)]


def test_history_lies_in_the_past_and_in_order(everyone: list[Person]) -> None:
    for person in everyone:
        post = habits.history(person, NOON)
        assert (post is None) == (person.habit in ("newcomer", "unopened"))
        if post is not None:
            instants = [parse_instant(event["timestamp"]) for event in post.body["batch"]]
            assert instants == sorted(instants)
            assert instants[-1] < NOON - DAY_MS // 4


def test_a_later_feed_has_other_alerts_in_the_same_chains() -> None:
    """The second run of a home finds the weather anew, and its chains are as long as those of the first."""
    first, second = ([alert for alert in parse(weather.feed(NOON, run)) if isinstance(alert, Alert)] for run in (0, 1))
    assert {a.id for a in first}.isdisjoint(a.id for a in second)
    assert [len(a.references) for a in first] == [len(a.references) for a in second]
    assert all(new.id.startswith(old.id) for old, new in zip(first, second, strict=True))


def test_an_alert_by_hand_is_what_the_notifier_reads() -> None:
    gazetteer = load()
    dallas = weather.find_city("Dallas, TX", gazetteer)
    alert = from_contract(weather.alert("tornado warning", dallas, NOON), gazetteer)
    assert (alert.event, alert.severity, alert.city_ids) == ("Tornado Warning", "Extreme", (dallas.city_id,))
    for typed, meant in (("Dalllas, TX", "Dallas, TX"), ("Springfeild", "Springfield, MO"), ("78701", "name it as in")):
        with pytest.raises(LocalError, match=f"{typed}.*{meant}"):
            weather.find_city(typed, gazetteer)


def test_a_home_knows_its_earlier_runs(tmp_path: Path) -> None:
    file = tmp_path / "demo.json"
    assert Past.next(file, 1) == Past(0, known=False)
    assert Past.next(file, 1) == Past(1, known=True)
    assert Past.next(file, 2) == Past(2, known=False)
    file.write_text("broken")
    assert Past.next(file, 2) == Past(0, known=False)


def test_made_up_forecasts_are_what_the_notifier_reads_and_are_warmer_in_the_south() -> None:
    gazetteer = load()
    mean: dict[str, float] = {}
    for name in ("Miami, FL", "Chicago, IL", "Anchorage, AK"):
        place = weather.find_city(name, gazetteer)
        told = [forecasts.forecast(place, seed, NOON) for seed in range(30)]
        read = [read_forecast(body, gazetteer) for body in told]
        assert {one.city_ids for one in read} == {(place.city_id,)}
        assert all(one.facts["low"] < one.facts["high"] and "made up" in one.facts["summary"] for one in read)
        assert forecasts.forecast(place, 1, NOON)["data"] == told[1]["data"]
        mean[name] = sum(one.facts["high"] for one in read) / len(read)
    assert mean["Miami, FL"] > mean["Chicago, IL"] > mean["Anchorage, AK"]
