"""The section of `swift deploy`: where the server listens, and its limits."""

from __future__ import annotations

from dataclasses import dataclass

from swift.config.options import option


@dataclass(frozen=True)
class ServingOptions:
    host: str = option("127.0.0.1")
    port: int = option(8000, low=0, high=65535)
    api_key: str | None = option()
    ssl_keyfile: str | None = option()
    ssl_certfile: str | None = option()
    served_model_name: tuple[str, ...] = option(())
    owned_by: str = option("swift")
    max_logprobs: int = option(20, low=0, high=20)
    max_queue: int = option(256, low=0)
    request_timeout: float = option(600.0, low=1)
    log_interval: float = option(20.0, low=0)
    log_level: str = option("info", choices=("critical", "error", "warning", "info", "debug"))
    verbose: bool = option(False)
