"""Where a process learns what to connect to: variables, files they name, defaults — in this order."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.ingest.consumer.settings import Settings as IngestSettings
from services.notifier.settings import Settings as NotifierSettings
from services.segmenter.settings import Settings as SegmenterSettings
from shared.process.settings import Installation, load


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("PERENNIAL_"):
            monkeypatch.delenv(name)


def test_defaults_need_nothing() -> None:
    found = load(Installation)
    assert (found.shards, found.prefix, found.bind) == (32, "", "127.0.0.1")


def test_variables_go_before_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_SHARDS", "4")
    monkeypatch.setenv("PERENNIAL_INGEST_TIME_SECONDS", "0.5")
    assert load(Installation).shards == 4
    assert load(IngestSettings).time_seconds == 0.5


def test_a_secret_may_come_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "dsn"
    path.write_text("postgresql://secret@db/perennial\n")
    monkeypatch.setenv("PERENNIAL_POSTGRES_FILE", str(path))
    assert load(Installation).postgres == "postgresql://secret@db/perennial"
    monkeypatch.setenv("PERENNIAL_POSTGRES", "postgresql://plain")
    assert load(Installation).postgres == "postgresql://plain"


def test_a_setting_that_is_a_file_itself_stays_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "account.json"
    path.write_text("{}")
    monkeypatch.setenv("PERENNIAL_NOTIFIER_FCM_ACCOUNT_FILE", str(path))
    assert load(NotifierSettings).fcm_account_file == str(path)


@pytest.mark.parametrize(
    ("name", "value", "settings"),
    [
        ("PERENNIAL_SHARDS", "0", Installation),
        ("PERENNIAL_SHARDS", "many", Installation),
        ("PERENNIAL_INGEST_TIME_SECONDS", "0", IngestSettings),
        ("PERENNIAL_SEGMENTER_SESSION_SECONDS", "1", SegmenterSettings),
        ("PERENNIAL_NOTIFIER_CONCURRENT_SENDS", "0", NotifierSettings),
    ],
)
def test_senseless_values_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, settings: type[Installation]
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        load(settings)


@pytest.mark.parametrize("settings", [Installation, IngestSettings, SegmenterSettings, NotifierSettings])
def test_every_setting_says_what_it_is_for(settings: type[Installation]) -> None:
    assert all(field.description for field in settings.model_fields.values())
