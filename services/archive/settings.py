"""What the archiver can be told."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.contracts.topics import Topic


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="PERENNIAL_ARCHIVE_", extra="ignore")

    path: str = Field(
        "", description="folder the log is archived in, a folder for each installation; empty: no archive"
    )
    topics: str = Field(
        f"{Topic.RAW},{Topic.EVENTS}",
        description=f"what is archived, by commas; `perennial rebuild users` needs {Topic.EVENTS}",
    )
    port: int = Field(8084, description="port of /healthz, /readyz and /metrics")
    seconds: float = Field(3600.0, gt=0, description="how long a record waits at most before it is in a file")
    records: int = Field(200_000, ge=1, description="how many records of a partition wait at most")
    file_bytes: int = Field(32_000_000, ge=1000, description="size at which a file is ended, before compression")
    look_seconds: float = Field(15.0, gt=0, description="how often it is looked whether something waits long enough")
