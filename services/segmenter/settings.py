"""What the segmenter can be told."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="PERENNIAL_SEGMENTER_", extra="ignore")

    port: int = Field(8081, description="port of the read API, /healthz, /readyz and /metrics")
    batch_records: int = Field(20_000, ge=1, description="most records applied in one transaction")
    cached_users: int = Field(200_000, ge=1000, description="users kept in memory over all shards")
    session_seconds: float = Field(30.0, ge=6, description="how long the group waits for a silent member")
    fault: str = Field("", description="test only: a deliberate bug in decide for events of this name")
