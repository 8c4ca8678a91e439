"""What every service answers alike: health, readiness, metrics, and errors with a code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from shared.process import http
from shared.process.http import ApiError, Health, service_app
from shared.process.metrics import API_REQUESTS, DECLARED, SERVICES


class _Time:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> _Time:
    found = _Time()
    monkeypatch.setattr(http, "monotonic", found)
    return found


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def client(health: Health, socket_enabled: None) -> Iterator[TestClient]:
    app: FastAPI = service_app("test", health)

    @app.get("/things/{number}")
    async def thing(number: int) -> dict[str, int]:
        if number == 0:
            raise ApiError(409, "taken", "it is taken", {"by": "you"}, {"Retry-After": "3"})
        if number == 1:
            raise ValueError("secret detail")
        return {"number": number}

    with TestClient(app, raise_server_exceptions=False) as found:
        yield found


def test_healthy_means_that_every_loop_goes_round(client: TestClient, health: Health, moment: _Time) -> None:
    """A process that answers is not one that works: a stuck loop has to be told from a live server."""
    health.beat("pipeline", 30)
    health.beat("relay", 5)
    assert client.get("/healthz").status_code == 200
    moment.now += 6
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()["loops"]) == (503, ["relay"])
    health.beat("relay", 5)
    assert client.get("/healthz").status_code == 200


def test_ready_only_once_it_said_so(client: TestClient, health: Health) -> None:
    assert client.get("/readyz").status_code == 503
    health.ready()
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_tells_its_own_metrics_and_those_of_all(service: str, socket_enabled: None) -> None:
    """All are declared in every process: told by another service, they would stand at zero, as if nothing were sent."""
    with TestClient(service_app(service, Health())) as client:
        text = client.get("/metrics").text
    told = {metric.name for metric in DECLARED if f"# HELP {metric.name} " in text}
    others = tuple(f"perennial_{other}_" for other in SERVICES if other != service)
    assert told == {metric.name for metric in DECLARED if not metric.name.startswith(others)}
    assert f"perennial_{service}_" in text and "process_cpu_seconds_total" in text


def test_working_means_ready_and_going_round(client: TestClient, health: Health, moment: _Time) -> None:
    """A process that waits for its database answers all the same; so does one with a loop that hangs."""

    def working() -> bool:
        return 'perennial_working{service="test"} 1.0' in client.get("/metrics").text

    assert not working()
    health.ready()
    health.beat("pipeline", 30)
    assert working()
    moment.now += 31
    assert not working()


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/things/0", 409, "taken"),
        ("/things/1", 500, "internal_error"),
        ("/things/x", 422, "invalid_request"),
        ("/nowhere", 404, "not_found"),
    ],
)
def test_every_error_has_a_code_and_a_sentence(client: TestClient, path: str, status: int, code: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["message"]
    assert "secret" not in answer.text


def test_a_wrong_method_is_said_in_the_same_form(client: TestClient) -> None:
    assert client.post("/things/2").json()["code"] == "method_not_allowed"


def test_details_and_headers_travel(client: TestClient) -> None:
    answer = client.get("/things/0")
    assert answer.json()["details"] == {"by": "you"}
    assert answer.headers["retry-after"] == "3"


def test_api_calls_are_counted_and_what_machines_ask_is_not(client: TestClient) -> None:
    """A scrape every few seconds would hide how many calls fail."""

    def counted(status: str) -> float:
        return API_REQUESTS.labels("test", status)._value.get()  # type: ignore[no-any-return]

    before = {status: counted(status) for status in ("200", "404", "409", "500")}
    for path in ("/things/5", "/things/0", "/things/1", "/nowhere", "/healthz", "/readyz", "/metrics"):
        client.get(path)
    assert {status: counted(status) - was for status, was in before.items()} == dict.fromkeys(before, 1)
