"""What the notifier can be told."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="PERENNIAL_NOTIFIER_", extra="ignore")

    port: int = Field(8082, description="port of the API, /healthz, /readyz and /metrics")
    fcm_url: str = Field("https://fcm.googleapis.com", description="where FCM v1 is spoken")
    fcm_account_file: str = Field("", description="service account JSON; empty: nothing can be sent by FCM")
    batch_records: int = Field(5000, ge=1, description="most feed records applied in one transaction")
    concurrent_sends: int = Field(200, ge=1, description="most calls to a provider at once")
    cached_recipients: int = Field(200_000, ge=1000, description="recipients kept in memory over all shards")
    session_seconds: float = Field(30.0, ge=6, description="how long the group waits for a silent member")
