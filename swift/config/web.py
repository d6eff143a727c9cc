"""The section of `swift web-ui` and `swift app`: where the page listens, who may see it, where its jobs are kept."""

from __future__ import annotations

from dataclasses import dataclass

from swift.config.options import option


@dataclass(frozen=True)
class WebOptions:
    lang: str | None = option(choices=("zh", "en"))
    server_name: str = option("127.0.0.1")
    server_port: int = option(7860, low=0, high=65535)
    share: bool = option(False)
    username: str | None = option()
    password: str | None = option()
    runs_dir: tuple[str, ...] = option(("output",))
    jobs_dir: str | None = option()
