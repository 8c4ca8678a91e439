"""What an event's context changes in a user's cold part."""

from __future__ import annotations

from services.segmenter.domain.profile import digest, fold
from services.segmenter.domain.state import MAX_DEVICES, Cold
from shared.contracts.events import Context, Device

PHONE = Device("d1", "ios", "t1")


def test_only_news_is_told() -> None:
    cold, changes = fold(Cold(), Context(PHONE, "en", "Europe/Paris", "1.0"))
    assert [kind for kind, _ in changes] == ["device_set", "profile_set"]
    assert (cold.devices, cold.locale, cold.timezone, cold.app_version) == ((PHONE,), "en", "Europe/Paris", "1.0")
    same, nothing = fold(cold, Context(PHONE, "en", "Europe/Paris", "1.0"))
    assert same is cold
    assert nothing == []


def test_what_a_context_leaves_out_is_kept() -> None:
    cold, _ = fold(Cold((), "en", "Europe/Paris", "1.0"), Context(locale="fr"))
    assert (cold.locale, cold.timezone, cold.app_version) == ("fr", "Europe/Paris", "1.0")


def test_a_new_token_takes_the_place_of_the_devices_old_one() -> None:
    cold, changes = fold(Cold((PHONE,)), Context(Device("d1", "ios", "t2")))
    assert [d.token for d in cold.devices] == ["t2"]
    assert [kind for kind, _ in changes] == ["device_set"]


def test_a_token_belongs_to_one_device() -> None:
    """A phone that gave itself a new id keeps its token; two devices with it would be pushed to twice."""
    cold, changes = fold(Cold((PHONE,)), Context(Device("d2", "ios", "t1")))
    assert [d.id for d in cold.devices] == ["d2"]
    assert changes[0] == ("device_removed", {"device_id": "d1"})


def test_the_ninth_device_pushes_out_the_oldest() -> None:
    several = tuple(Device(f"d{n}", "web", f"t{n}") for n in range(MAX_DEVICES))
    cold, changes = fold(Cold(several), Context(Device("new", "web", "new")))
    assert [d.id for d in cold.devices] == [*(d.id for d in several[1:]), "new"]
    assert changes[0] == ("device_removed", {"device_id": "d0"})


def test_the_digest_tells_every_field_apart() -> None:
    several = [
        Context(),
        Context(PHONE),
        Context(Device("d1", "ios", "t2")),
        Context(locale="x"),
        Context(timezone="x"),
        Context(app_version="x"),
        Context(campaign="x"),
    ]
    assert len({digest(context) for context in several}) == len(several)
    assert {len(digest(context)) for context in several} == {8}
