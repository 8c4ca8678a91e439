"""What the gateway can be told: its port and the bounds on what it holds."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class GatewaySettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="PERENNIAL_GATEWAY_", extra="ignore")

    port: int = Field(8080, ge=1, le=65535, description="port of the tracking API")
    deadline_seconds: float = Field(5.0, gt=0, description="how long a request waits for the broker before its 503")
    body_seconds: float = Field(
        10.0,
        gt=0,
        description="how long a client may take to send a body before its 408",
    )
    in_flight_bytes: int = Field(
        64_000_000,
        ge=1_000_000,
        description="bytes held for the broker before requests are answered 429",
    )
    keys_seconds: float = Field(2.0, gt=0, description="how often write keys are read from Postgres")
    probe_seconds: float = Field(2.0, gt=0, description="how often the broker is asked whether it still answers")
    throttle_rejects: int = Field(
        1_000,
        ge=0,
        description="so many rejected events of a source in five minutes throttle its keys, if most are; 0: never",
    )
    throttled_events_per_second: float = Field(50.0, gt=0, description="what a throttled key may post here")
