"""Where the embedded servers live, and as which user they run.

Postgres refuses to run as root, and the broker has no need to. Started by root, both run as the system user
`perennial` (or `nobody`) from copies under /var/lib/perennial, because that user may not enter root's directories and
no directory's rights are widened for it.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from services.local.program import Account, LocalError
from shared.contracts.identifiers import fresh_id

STATE_ROOT = Path("/var/lib/perennial")
USER = "perennial"
NOBODY = Account(65534, 65534)


@dataclass(frozen=True)
class Lodging:
    """`data`: a directory for what must stay, as `account` (None: the user who started us)."""

    data: Path
    account: Account | None

    def make(self, path: Path, mode: int = 0o700) -> Path:
        """Creates a directory that only the servers' user may enter."""
        path.mkdir(parents=True, exist_ok=True)
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)
        path.chmod(mode)
        return path


def service_account() -> Account:
    """The unprivileged user, created on first use. Needs root."""
    try:
        entry = pwd.getpwnam(USER)
    except KeyError:
        useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
        if useradd is None:
            return NOBODY
        options = ["--system", "--no-create-home", "--home-dir", str(STATE_ROOT), "--shell", "/usr/sbin/nologin"]
        done = subprocess.run([useradd, *options, USER], capture_output=True, text=True, check=False)
        try:
            entry = pwd.getpwnam(USER)
        except KeyError:
            if done.returncode != 0:
                return NOBODY
            raise LocalError(f"the user {USER!r} was created but cannot be found; run as an ordinary user") from None
    return Account(entry.pw_uid, entry.pw_gid)


def lodging(home: Path) -> Lodging:
    """Where this home's servers keep their data.

    For an ordinary user `home/servers`. For root a directory under /var/lib/perennial, named by the home's path and by
    an id kept in the home: a home that was deleted and made again starts empty.
    """
    if os.geteuid() != 0:
        place = Lodging(home / "servers", None)
        place.make(place.data)
        return place
    marker = home / "servers.id"
    if not marker.exists():
        marker.write_text(fresh_id()[:8])
    name = hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:8]
    try:
        STATE_ROOT.mkdir(parents=True, exist_ok=True)
        STATE_ROOT.chmod(0o755)
        place = Lodging(STATE_ROOT / f"{name}-{marker.read_text().strip()}", service_account())
        return Lodging(place.make(place.data), place.account)
    except OSError as error:
        message = f"cannot prepare {STATE_ROOT} for the embedded servers ({error}); run as an ordinary user"
        raise LocalError(message) from error


def staged(name: str, sources: dict[str, Path]) -> Path:
    """A directory holding copies of `sources` (by their place in it) that every user may read; made once per `name`.

    Copied beside and renamed, so that a half-made copy is never used.
    """
    target = STATE_ROOT / "bin" / name
    if target.exists():
        return target
    half = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        for directory in (STATE_ROOT, target.parent, half):
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o755)
        for place, source in sources.items():
            if source.is_dir():
                unwanted = shutil.ignore_patterns("include", "*.a")
                shutil.copytree(source, half / place, symlinks=True, ignore=unwanted)
            elif source.exists():
                shutil.copy2(source, half / place)
        for path in half.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    except OSError as error:
        shutil.rmtree(half, ignore_errors=True)
        message = f"cannot copy the embedded servers to {target} ({error}); run as an ordinary user"
        raise LocalError(message) from error
    try:
        half.rename(target)
    except OSError:  # another process was faster
        shutil.rmtree(half, ignore_errors=True)
    return target
