"""Official SDKs of pages and phones, unmodified: analytics-next in Chromium, and analytics-kotlin over TLS. Every event
counts once for its user, also where the broker is away in the middle."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.faults.conftest import APACHE
from tests.support.installation import Rig, eventually
from tests.support.ports import free_port
from tests.support.recorder import recording
from tests.support.sdks.using import EVENTS, OUTAGE_SECONDS, SDKS, USERS, counted, used

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.long]


@asynccontextmanager
async def page_open(node: Path, home: Path, **query: str) -> AsyncIterator[asyncio.Future[str]]:
    """A tiny page that uses analytics-next, served from another origin and open in Chromium; what it says at its end."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("NOT TESTED WITH ANALYTICS-NEXT: chromium is not on the PATH")
    said: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def hear(request: web.Request) -> web.Response:
        if not said.done():
            said.set_result(await request.text())
        return web.Response()

    app = web.Application()
    app.router.add_post("/said", hear)
    app.router.add_static("/sdk", node / "node_modules" / "@segment" / "analytics-next" / "dist" / "umd")
    app.router.add_static("/", SDKS)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port := free_port())
    await site.start()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    process = await asyncio.create_subprocess_exec(
        chromium, *options, f"--user-data-dir={home}", f"http://127.0.0.1:{port}/page.html?{urlencode(query)}",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield said
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await runner.cleanup()


async def searched(rig: Rig, prefix: str, users: int, events: int, seconds: float) -> None:
    """Wait until every user has searched so often; a page that still posts is not drained."""
    async with rig.database() as connection:

        async def missing() -> str:
            raw = await connection.fetchval(
                "SELECT count(*) FROM segmenter.user_state WHERE starts_with(user_id, $1)", prefix
            )
            if raw < users:
                return f"{raw} of {users} users are known"
            found = [await rig.user(f"{prefix}{n}") for n in range(users)]
            counts = Counter(sum(city["count"] for city in user["cities"]["searched"]) for user in found)
            return "" if counts == {events: users} else f"searches: {dict(counts)}"

        await eventually(missing, seconds, every=1.0)


@pytest.mark.parametrize("strategy", ["batching", "single"])
async def test_a_page_counts_exactly(rig: Rig, node: Path, tmp_path: Path, strategy: str) -> None:
    """analytics-next in Chromium, from another origin: preflight, text/plain, key in the body or in Basic."""
    users, events = (20, 100) if strategy == "batching" else (10, 40)
    async with recording(rig.status["gateway"]) as front:
        query = {"HOST": front.url, "WRITE_KEY": rig.status["write_key"], "PREFIX": f"web-{strategy}-", "SECONDS": "1"}
        query |= {"USERS": str(users), "EVENTS": str(events), "STRATEGY": strategy}
        async with page_open(node, tmp_path / "chromium", **query) as said:
            async with asyncio.timeout(100):
                assert await said == "done"
            await searched(rig, query["PREFIX"], users, events, 60)
        print(strategy, dict(front.asked))
    await counted(rig, query["PREFIX"], users, events)
    await rig.equal()


@pytest.mark.parametrize("broker", [APACHE], indirect=True, scope="session")
async def test_a_page_waits_for_a_broker_that_is_away(rig: Rig, node: Path, tmp_path: Path) -> None:
    """Its retries carry a header of their own, which the preflight lets through."""
    query = {"WRITE_KEY": rig.status["write_key"], "PREFIX": "web-out-", "SECONDS": str(2 * OUTAGE_SECONDS)}
    query |= {"HOST": rig.status["gateway"], "USERS": str(USERS), "EVENTS": str(EVENTS), "STRATEGY": "batching"}
    async with page_open(node, tmp_path / "chromium", **query) as said:
        await asyncio.sleep(OUTAGE_SECONDS / 2)
        async with rig.no_broker():
            await asyncio.sleep(OUTAGE_SECONDS)
        async with asyncio.timeout(100):
            assert await said == "done"
        await searched(rig, "web-out-", USERS, EVENTS, 150)
    await counted(rig, "web-out-", USERS, EVENTS)
    await rig.equal()


@pytest.fixture(scope="session")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with analytics-kotlin and the compiled program that uses it."""
    missing = [tool for tool in ("mvn", "javac", "keytool") if shutil.which(tool) is None]
    if missing:
        pytest.skip(
            f"NOT TESTED WITH ANALYTICS-KOTLIN: {', '.join(missing)} not on the PATH (package openjdk-17-jdk-headless)"
        )
    folder = tmp_path_factory.mktemp("phone")
    source = SDKS / "kotlin"
    fetch = ["mvn", "-q", "-B", "-f", str(source / "pom.xml"), "dependency:copy-dependencies"]
    fetch.append(f"-DoutputDirectory={folder}")
    for command in (fetch, ["javac", "-cp", f"{folder}/*", "-d", str(folder), str(source / "Phone.java")]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        if done.returncode:
            pytest.skip(f"NOT TESTED WITH ANALYTICS-KOTLIN: {(done.stdout + done.stderr)[-500:]}")
    return folder


def certified(folder: Path) -> ssl.SSLContext:
    """A terminator's TLS, with a certificate made here that `trust.p12` trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    today = datetime.fromtimestamp(time.time(), UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, PrivateFormat.PKCS8, NoEncryption()))
    trust = ["keytool", "-importcert", "-noprompt", "-alias", "test", "-file", str(folder / "cert.pem")]
    store = ["-keystore", str(folder / "trust.p12"), "-storetype", "PKCS12", "-storepass", "changeit"]
    subprocess.run([*trust, *store], capture_output=True, check=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def phone_command(phone: Path, home: Path) -> list[str]:
    trust = [f"-Djavax.net.ssl.trustStore={home / 'trust.p12'}", "-Djavax.net.ssl.trustStorePassword=changeit"]
    return ["java", *trust, f"-Djava.io.tmpdir={home}", f"-Duser.dir={home}", "-cp", f"{phone}:{phone}/*", "Phone"]


async def test_a_phone_counts_exactly_over_tls(rig: Rig, phone: Path, tmp_path: Path) -> None:
    """analytics-kotlin asks for its settings, then posts batches; TLS ends before the gateway."""
    async with recording(rig.status["gateway"], certified(tmp_path)) as front:
        await used(phone_command(phone, tmp_path), rig, front.url, "kt-", USERS, EVENTS, 2)
    print("kotlin", dict(front.asked))
    await counted(rig, "kt-", USERS, EVENTS)
    await rig.equal()


@pytest.mark.parametrize("broker", [APACHE], indirect=True, scope="session")
async def test_a_phone_waits_for_a_broker_that_is_away(rig: Rig, phone: Path, tmp_path: Path) -> None:
    async with recording(rig.status["gateway"], certified(tmp_path)) as front:
        using = asyncio.create_task(
            used(phone_command(phone, tmp_path), rig, front.url, "kt-out-", USERS, EVENTS, 2 * OUTAGE_SECONDS)
        )
        await asyncio.sleep(OUTAGE_SECONDS / 3)
        async with rig.no_broker():
            await asyncio.sleep(OUTAGE_SECONDS)
        await using
    await counted(rig, "kt-out-", USERS, EVENTS)
    await rig.equal()
