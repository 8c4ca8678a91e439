"""Apache Kafka on this machine without containers: jars by Maven, one KRaft node on loopback.

It keeps its log over restarts, under the home.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
from pathlib import Path

from services.local.broker import HOST, require_free, until_listening
from services.local.program import LocalError, Program
from shared.contracts.identifiers import fresh_id

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "kafka"
START_SECONDS = 60.0
HEAP = "512m"


def missing_tools() -> str | None:
    """One sentence that names what is not installed, or None when Apache Kafka can run here."""
    for tool, what in (
        ("java", "Java 17 or later (package openjdk-17-jre-headless)"),
        ("mvn", "Maven (package maven)"),
    ):
        if shutil.which(tool) is None:
            return f"--kafka apache needs {what}: the program {tool!r} is not on the PATH"
    if not (DEPLOY / "pom.xml").exists():
        return f"--kafka apache needs a checkout of the source: {DEPLOY / 'pom.xml'} does not exist"
    return None


class ApacheKafka:
    """Holds the broker's process; `start` returns once it answers. The controller listens on the port above."""

    def __init__(self, home: Path, port: int) -> None:
        self.home = home.resolve()
        self.port = port
        self.address = f"{HOST}:{port}"
        self.program: Program | None = None

    @property
    def pid(self) -> int | None:
        return self.program.pid if self.program is not None else None

    async def start(self) -> str:
        problem = missing_tools()
        if problem is not None:
            raise LocalError(problem)
        libraries = await self._libraries()
        place = self.home / "kafka"
        place.mkdir(parents=True, exist_ok=True)
        properties = place / "server.properties"
        properties.write_text(self._properties(place))
        if not (place / "log" / "meta.properties").exists():
            await self._format(libraries, properties)
        self.program = Program(
            "kafka",
            self._java(libraries, HEAP, "kafka.Kafka", str(properties)),
            log=self.home / "logs" / "kafka.log",
            cwd=place,
        )
        require_free(self.port)
        await self.program.start()
        await until_listening(self.program, self.port, START_SECONDS)
        return self.address

    async def stop(self, timeout_seconds: float = 20.0) -> None:
        if self.program is not None:
            await self.program.stop(timeout_seconds)

    async def wait(self) -> int:
        if self.program is None:
            raise RuntimeError("Kafka was never started")
        return await self.program.wait()

    def _java(self, libraries: Path, heap: str, *arguments: str) -> list[str]:
        logging = DEPLOY / "log4j2.properties"
        return [
            shutil.which("java") or "java",
            f"-Xmx{heap}",
            # the quick compiler only: the other one takes half a core for the first minutes
            "-XX:TieredStopAtLevel=1",
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={logging}",
            "-cp",
            f"{libraries}/*",
            *arguments,
        ]

    def _properties(self, place: Path) -> str:
        controller = f"{HOST}:{self.port + 1}"
        lines = {
            "listeners": f"BROKER://{self.address},CONTROLLER://{controller}",
            "advertised.listeners": f"BROKER://{self.address}",
            "controller.quorum.voters": f"1@{controller}",
            "log.dirs": str(place / "log"),
        }
        return (DEPLOY / "server.properties").read_text() + "".join(f"{k}={v}\n" for k, v in lines.items())

    async def _format(self, libraries: Path, properties: Path) -> None:
        """Gives an empty log folder its cluster id, which is the installation's log id."""
        cluster = base64.urlsafe_b64encode(bytes.fromhex(fresh_id() + fresh_id()[:8])).decode().rstrip("=")
        if cluster.startswith("-"):
            cluster = "A" + cluster[1:]  # the tool would read it as an option
        arguments = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)]
        await self._run("kafka-format", self._java(libraries, "128m", *arguments), "could not format its log folder")

    async def _libraries(self) -> Path:
        """The folder with the jars this pom asks for, fetched when it is missing or of another pom."""
        pom = (DEPLOY / "pom.xml").read_bytes()
        version = hashlib.sha256(pom).hexdigest()[:12]
        base = DEPLOY if os.access(DEPLOY, os.W_OK) else self.home / "kafka"
        libraries = base / "libs"
        if (libraries / f".complete-{version}").exists():
            return libraries
        base.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(libraries, ignore_errors=True)
        work = base / "libs.new"
        shutil.rmtree(work, ignore_errors=True)
        command = [
            shutil.which("mvn") or "mvn",
            "-q",
            "-B",
            "-f",
            str(DEPLOY / "pom.xml"),
            "dependency:copy-dependencies",
        ]
        fetch = [*command, f"-DoutputDirectory={work}"]
        await self._run("kafka-fetch", fetch, "could not be fetched by Maven (is a Maven repository reachable?)")
        (work / f".complete-{version}").touch()
        work.rename(libraries)
        return libraries

    async def _run(self, name: str, argv: list[str], failed: str) -> None:
        program = Program(name, argv, log=self.home / "logs" / f"{name}.log", cwd=self.home)
        await program.start()
        try:
            code = await program.wait()
        finally:
            program.kill()
        if code != 0:
            raise LocalError(f"Apache Kafka {failed}; see {program.log}: {program.last_words(2)}")
