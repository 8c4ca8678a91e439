"""What a home keeps from whom, what children are told, and how texts for people read; no process, no socket."""

from __future__ import annotations

import json
import multiprocessing
import stat
from pathlib import Path

import pytest

from services.local import keys
from services.local.broker import broker_binary
from services.local.children import ending, pause_seconds
from services.local.environment import environment, write_fcm_account
from services.local.home import Home
from services.local.migrate import alembic_address
from services.local.program import LocalError, message_of


def hold(path: Path, held: multiprocessing.synchronize.Event, let_go: multiprocessing.synchronize.Event) -> None:
    with Home(path).lock():
        held.set()
        let_go.wait(20)


def test_a_home_belongs_to_one_process(tmp_path: Path) -> None:
    """Two installations on one Postgres data folder would be two owners of every shard."""
    context = multiprocessing.get_context("spawn")
    held, let_go = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, held, let_go))
    other.start()
    try:
        assert held.wait(20)
        home = Home(tmp_path)
        assert home.in_use()
        with pytest.raises(LocalError, match=f"in use by process {other.pid}"), home.lock():
            pass
    finally:
        let_go.set()
        other.join(20)
    with home.lock():
        pass
    assert not home.in_use()


def test_a_home_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError, match="choose another --home"), Home(tmp_path / "file" / "home").lock():
        pass


def test_status_is_its_owners_alone_and_read_only_while_something_runs(tmp_path: Path) -> None:
    """It holds both keys; and one left by a killed process must not be believed."""
    home = Home(tmp_path)
    with home.lock():
        home.write_status({"gateway": "x"})
        assert stat.S_IMODE(home.status_file.stat().st_mode) == 0o600
    with pytest.raises(LocalError, match="nothing runs"):
        home.read_status()


def test_keys_are_kept_readable_by_their_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys.write(path, {"write": "w", "admin": "a"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.read(path) == {"write": "w", "admin": "a"}
    path.write_text("not json")
    assert keys.read(path) == {}


def test_children_are_told_where_everything_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_INGEST_BATCH_RECORDS", "7")
    home = Home(tmp_path)
    env = environment(
        home, kafka="k:1", postgres="postgresql://x", port=9000, shards=4, prefix="a.", sandbox=True, dev=True
    )
    assert env["PERENNIAL_KAFKA"] == "k:1"
    assert env["PERENNIAL_SHARDS"] == "4"
    assert env["PERENNIAL_PREFIX"] == "a."
    assert env["PERENNIAL_INGEST_PORT"] == "9003"
    assert env["PERENNIAL_SANDBOX_PORT"] == "9010"
    assert env["PERENNIAL_NOTIFIER_FCM_URL"] == "http://127.0.0.1:9010"
    assert env["PERENNIAL_CLOCK"] == str(tmp_path / "clock.json")
    assert env["PERENNIAL_INGEST_BATCH_RECORDS"] == "7", "what the caller set for a service stays"
    plain = environment(home, kafka="k:1", postgres="postgresql://x", port=9000, shards=4)
    assert plain["PERENNIAL_CLOCK"] == ""
    assert "PERENNIAL_NOTIFIER_FCM_URL" not in plain
    assert plain["PERENNIAL_INSTANCE"] == "local"
    monkeypatch.setenv("PERENNIAL_NOTIFIER_SESSION_SECONDS", "9")
    quick = environment(home, kafka="k:1", postgres="postgresql://x", port=9000, shards=4, quick_groups=True)
    assert quick["PERENNIAL_INSTANCE"] == "", "this broker gives static members up while it keeps them waiting"
    assert (quick["PERENNIAL_INGEST_SESSION_SECONDS"], quick["PERENNIAL_NOTIFIER_SESSION_SECONDS"]) == ("6", "9")


def test_the_throw_away_account_is_made_once_and_follows_the_port(tmp_path: Path) -> None:
    home = Home(tmp_path)
    write_fcm_account(home, "http://127.0.0.1:1")
    first = json.loads(home.fcm_account_file.read_text())
    write_fcm_account(home, "http://127.0.0.1:2")
    second = json.loads(home.fcm_account_file.read_text())
    assert first["private_key"] == second["private_key"]
    assert second["token_uri"] == "http://127.0.0.1:2/token"
    assert second["project_id"] == "demo"


def test_pauses_grow_and_end_growing() -> None:
    assert [pause_seconds(n) for n in range(9)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_an_ending_is_told_in_words() -> None:
    assert ending(3) == "exit 3"
    assert ending(-9) == "killed by signal 9"


def test_a_log_line_is_reduced_to_its_message() -> None:
    assert message_of('{"level": "error", "message": "no rules"}') == "no rules"
    assert message_of("Traceback: x ") == "Traceback: x"
    assert message_of("[1]") == "[1]"


def test_the_database_address_names_the_driver() -> None:
    assert alembic_address("postgresql://postgres@/p?host=/s") == "postgresql+asyncpg://postgres@/p?host=/s"
    with pytest.raises(LocalError, match="begins with postgresql://"):
        alembic_address("mysql://x")


def test_a_platform_without_a_broker_is_told_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(LocalError, match="--kafka HOST:PORT"):
        broker_binary()
