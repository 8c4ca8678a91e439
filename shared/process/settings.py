"""Where a process learns what it is to connect to: the environment, or files it names.

`PERENNIAL_<NAME>` for the whole installation, `PERENNIAL_<SERVICE>_<NAME>` for one service. Any of them
may be given as `…_FILE`, the path of a file that holds the value.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

S = TypeVar("S", bound=BaseSettings)


class Installation(BaseSettings):
    """What every service of one installation shares."""

    model_config = SettingsConfigDict(env_prefix="PERENNIAL_", extra="ignore")

    kafka: str = Field("127.0.0.1:8100", description="host:port of a Kafka broker")
    postgres: str = Field("", description="Postgres DSN, as asyncpg takes it")
    prefix: str = Field("", description="prefix of every topic and group name")
    shards: int = Field(32, ge=1, le=1024, description="number of shards; fixed when the installation is made")
    clock: str = Field("", description="file that moves product time; empty: real time")
    home: str = Field(".perennial", description="folder for data, logs and last good definitions")
    bind: str = Field("127.0.0.1", description="address the services listen on")
    instance: str = Field("", description="name that outlives a restart, unique among a service's replicas")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    crashpoint: str = Field("", description="test only: NAME:N ends the process hard at the Nth pass of NAME")


def load(settings: type[S]) -> S:
    """Read one settings class; values from `…_FILE` variables win over defaults, not over the plain ones."""
    prefix = settings.model_config.get("env_prefix", "")
    found: dict[str, str] = {}
    for field in settings.model_fields:
        name = f"{prefix}{field}".upper()
        path = os.environ.get(f"{name}_FILE")
        if path and name not in os.environ and f"{field}_file" not in settings.model_fields:
            found[field] = Path(path).read_text().strip()
    return settings(**found)  # type: ignore[arg-type]
