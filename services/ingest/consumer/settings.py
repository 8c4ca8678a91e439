"""What the ingest consumer can be told."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="PERENNIAL_INGEST_", extra="ignore")

    port: int = Field(8083, description="port of /healthz, /readyz and /metrics")
    time_seconds: float = Field(2.0, gt=0, description="how often a partition at its end says what time it has reached")
    batch_records: int = Field(5000, ge=1, description="most raw records decided between two sends")
    session_seconds: float = Field(30.0, ge=6, description="how long the group waits for a silent member")
    rules_version: int = Field(0, ge=0, description="0: the newest; test only: stay on this version")
