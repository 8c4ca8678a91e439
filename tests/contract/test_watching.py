"""Do rules, dashboard, configuration, compose file and documents speak of the same metrics, alerts and places?"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.local.home import OFFSETS
from shared.process.metrics import DECLARED
from tests.support.prometheus import DASHBOARD, JOBS, ROOT, SHIPPED, dashboard, hastened, promtool, queries

RULES: list[dict[str, Any]] = yaml.safe_load((SHIPPED / "rules.yml").read_text())["groups"][0]["rules"]
CASES: dict[str, Any] = yaml.safe_load((SHIPPED / "rules_test.yml").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
EXPRESSIONS = [*((rule["alert"], rule["expr"]) for rule in RULES), *queries()]
GENERAL = {"job", "instance", "le"}
"""Labels that Prometheus and histograms add."""


def known() -> dict[str, set[str]]:
    """Labels by the name of every series the services tell."""
    found: dict[str, set[str]] = {
        "up": set(),
        "ALERTS": {"alertname", "alertstate"},
        "process_cpu_seconds_total": set(),
        "process_resident_memory_bytes": set(),
        "process_start_time_seconds": set(),
    }
    for metric in DECLARED:
        ends = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        found |= {metric.name + end: set(metric.labels) for end in ends}
    return found


def test_the_alerts_fire_when_they_must_and_only_then() -> None:
    done = promtool("test", "rules", SHIPPED / "rules_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_hastened_rules_differ_in_their_times_alone(tmp_path: Path) -> None:
    """Otherwise the alerts seen firing in the tests would be others than those shipped."""
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(hastened(20)))
    done = promtool("check", "rules", tmp_path / "rules.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    spans = {"1m": "3000ms", "2m": "6000ms", "5m": "15000ms", "15m": "45000ms"}
    for rule, fast in zip(RULES, hastened(20)["groups"][0]["rules"], strict=True):
        told = re.sub(r"\[(\w+)\]", lambda found: f"[{spans[found[1]]}]", rule["expr"])
        for slow, quick in (("60", "3"), ("120", "6"), ("180", "9")):
            told = told.replace(f"_seconds) > {slow}\n", f"_seconds) > {quick}\n")
        assert fast["expr"] == told
        assert fast.get("for") == spans.get(rule.get("for", ""))


@pytest.mark.parametrize("name", ["prometheus.yml", "local.yml"])
def test_the_configuration_is_valid(name: str) -> None:
    done = promtool("check", "config", SHIPPED / name)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("silent", [rule["alert"] for rule in RULES])
def test_an_alert_that_cannot_fire_is_noticed(silent: str, tmp_path: Path) -> None:
    """Otherwise the cases above would prove nothing of it."""
    rules = [{**rule, "expr": "vector(0) > 1"} if rule["alert"] == silent else rule for rule in RULES]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "perennial", "rules": rules}]}))
    shutil.copy(SHIPPED / "rules_test.yml", tmp_path)
    done = promtool("test", "rules", tmp_path / "rules_test.yml")
    assert done.returncode != 0 and silent in done.stdout + done.stderr


@pytest.mark.parametrize("always", [rule["alert"] for rule in RULES])
def test_an_alert_that_always_fires_is_noticed(always: str, tmp_path: Path) -> None:
    rules = [{**rule, "expr": "vector(1)", "for": "0s"} if rule["alert"] == always else rule for rule in RULES]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "perennial", "rules": rules}]}))
    shutil.copy(SHIPPED / "rules_test.yml", tmp_path)
    done = promtool("test", "rules", tmp_path / "rules_test.yml")
    assert done.returncode != 0 and always in done.stdout + done.stderr


def test_every_expression_of_the_dashboard_parses(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expr} for number, (_, expr) in enumerate(queries())]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = promtool("check", "rules", tmp_path / "panels.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_only_metrics_and_labels_that_exist_are_asked_for(where: str, expression: str) -> None:
    """A metric that was renamed would leave an alert that never fires and a panel that stays empty."""
    series = known()
    named = set(re.findall(r"\b(?:perennial|process)_\w+|\bup\b|\bALERTS\b", expression))
    assert named, where
    assert named <= set(series)
    asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression))
    asked |= {label for by in re.findall(r"\bby \(([^)]*)\)", expression) for label in by.replace(" ", "").split(",")}
    assert asked <= GENERAL.union(*(series[name] for name in named))


def test_every_metric_is_watched() -> None:
    """One that is on no panel is looked at by nobody."""
    shown = " ".join(expression for _, expression in queries())
    assert not [metric.name for metric in DECLARED if not re.search(rf"\b{metric.name}(_bucket)?\b", shown)]


def test_each_alert_says_what_to_do() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    assert len(RULES) == 7
    for rule in RULES:
        assert re.search(rf"^\| `{rule['alert']}` \| \S.* \| \S.* \|$", page, re.MULTILINE), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description"}


def test_panels_have_places_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["description"], panel["title"]


def test_grafana_finds_its_dashboard_and_its_prometheus() -> None:
    grafana, provisioning = COMPOSE["services"]["grafana"], ROOT / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/perennial.yml").read_text())["providers"]
    assert source["url"] == "http://prometheus:9090"
    asked = {target["datasource"]["uid"] for panel in dashboard()["panels"] for target in panel.get("targets", [])}
    assert asked == {source["uid"]}
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    assert mounts[f"./{DASHBOARD.relative_to(ROOT)}"] == f"{provider['options']['path']}/{DASHBOARD.name}"
    assert (
        grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
        == mounts[f"./{DASHBOARD.relative_to(ROOT)}"]
    )
    assert mounts[f"./{provisioning.relative_to(ROOT)}"] == "/etc/grafana/provisioning"


def test_prometheus_asks_every_service_of_the_compose_file() -> None:
    config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    asked = {}
    for job in config["scrape_configs"]:
        (found,) = job["dns_sd_configs"]
        assert found["names"] == [job["job_name"]]
        asked[job["job_name"]] = found["port"]
    assert set(asked) == {*JOBS, "archive"} <= set(COMPOSE["services"])
    for name, port in asked.items():
        assert f":{port}/healthz" in COMPOSE["services"][name]["healthcheck"]["test"][-1]
    mounts = dict(volume.split(":")[:2] for volume in COMPOSE["services"]["prometheus"]["volumes"])
    assert mounts[f"./{SHIPPED.relative_to(ROOT)}"] == "/etc/prometheus"


def test_prometheus_asks_every_service_on_this_machine_at_its_usual_port() -> None:
    config = yaml.safe_load((SHIPPED / "local.yml").read_text())
    asked = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert asked == {name: [f"127.0.0.1:{8080 + OFFSETS[name]}"] for name in JOBS}


def test_the_compose_file_names_servers_that_were_tested_and_services_that_exist() -> None:
    services = COMPOSE["services"]
    assert set(services) == {"kafka", "postgres", "migrate", *JOBS, "archive", "prometheus", "grafana"}
    pom = (ROOT / "deploy/kafka/pom.xml").read_text()
    kafka = re.search(r"<artifactId>kafka_[\d.]+</artifactId>\s*<version>([\d.]+)</version>", pom)
    assert kafka is not None and services["kafka"]["image"] == f"apache/kafka:{kafka[1]}"
    assert services["migrate"]["command"] == ["perennial", "migrate"]
    for name in (*JOBS, "archive"):
        assert services[name]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    for name, service in services.items():
        for published in service.get("ports", []):
            assert published.startswith("127.0.0.1:"), f"{name}: what is open to the network is the operator's to say"
        assert {v.split(":")[0] for v in service.get("volumes", []) if not v.startswith(".")} <= set(COMPOSE["volumes"])


def test_the_image_runs_as_nobody_special_and_gets_what_it_copies() -> None:
    lines = (ROOT / "deploy/Dockerfile").read_text().splitlines()
    user = next(line.split()[1] for line in lines if line.startswith("USER "))
    assert user not in ("root", "0")
    assert lines.index(f"USER {user}") > max(n for n, line in enumerate(lines) if line.startswith("COPY "))
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {line.split()[1] for line in lines if line.startswith("COPY ")} == allowed
