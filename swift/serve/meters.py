"""What the server counts, and how it is shown: /metrics, and a log line every --log_interval seconds."""

from __future__ import annotations

import time

from swift.engines.protocol import EngineStats, Usage
from swift.serve.metrics import Counter, Gauge, Histogram, page


class Meters:
    def __init__(self) -> None:
        self.requests = Counter(
            "swift_http_requests_total", "HTTP requests by endpoint and status (499: the client left)."
        )
        self.prompt_tokens = Counter("swift_prompt_tokens_total", "Prompt tokens of answered requests.")
        self.completion_tokens = Counter("swift_completion_tokens_total", "Tokens generated for answered requests.")
        self.latency = Histogram("swift_request_seconds", "Time from a request's admission to its end.")
        self.first_token = Histogram("swift_first_token_seconds", "Time from a request's admission to its first token.")
        self.running = Gauge("swift_requests_running", "Requests that the engine is computing.")
        self.waiting = Gauge("swift_requests_waiting", "Requests that wait in the engine.")
        self.active = Gauge("swift_requests_active", "Requests admitted and not ended.")
        self.finished = Gauge("swift_engine_finished_total", "Answers that the engine completed.", "counter")
        self.failed = Gauge("swift_engine_failed_total", "Requests that failed in the engine.", "counter")
        self.cancelled = Gauge("swift_engine_cancelled_total", "Requests that were cancelled.", "counter")
        self.generated = Gauge("swift_engine_generated_tokens_total", "Tokens that the engine generated.", "counter")
        self.restarts = Gauge(
            "swift_engine_restarts_total", "How often the engine died and was started again.", "counter"
        )
        self.cached = Gauge("swift_engine_cached_tokens_total", "Prompt tokens that weren't computed again.", "counter")
        self.prompted = Gauge("swift_engine_prompt_tokens_total", "Prompt tokens of ended requests.", "counter")
        self.hits = Gauge("swift_engine_prefix_hits_total", "Prompts that began as an earlier one.", "counter")
        self.kv_tokens = Gauge("swift_engine_kv_tokens", "Tokens that running requests hold memory for.")
        self.kv_capacity = Gauge("swift_engine_kv_capacity_tokens", "Tokens that there is memory for (0: unknown).")
        self.kept = Gauge("swift_engine_kept_tokens", "Tokens kept for prompts that begin alike.")
        self.recent_seconds = 1.0  # moving average of a request's time
        self._last: tuple[float, EngineStats] = (time.monotonic(), EngineStats())

    def answered(self, seconds: float, first: float | None, usage: Usage) -> None:
        self.latency.observe(seconds)
        self.recent_seconds += 0.1 * (seconds - self.recent_seconds)
        if first is not None:
            self.first_token.observe(first)
        self.prompt_tokens.add(usage.prompt_tokens)
        self.completion_tokens.add(usage.completion_tokens)

    def page(self, stats: EngineStats, active: int) -> str:
        self.running.value, self.waiting.value, self.active.value = stats.running, stats.waiting, active
        self.finished.value, self.failed.value = stats.finished, stats.failed
        self.cancelled.value, self.generated.value = stats.cancelled, stats.generated_tokens
        self.restarts.value, self.cached.value = stats.restarts, stats.cached_tokens
        self.prompted.value, self.hits.value = stats.prompt_tokens, stats.prefix_hits
        self.kv_tokens.value, self.kv_capacity.value = stats.kv_tokens or 0, stats.kv_capacity or 0
        self.kept.value = stats.kept_tokens or 0
        return page(
            [
                self.requests,
                self.prompt_tokens,
                self.completion_tokens,
                self.latency,
                self.first_token,
                self.running,
                self.waiting,
                self.active,
                self.finished,
                self.failed,
                self.cancelled,
                self.generated,
                self.restarts,
                self.cached,
                self.prompted,
                self.hits,
                self.kv_tokens,
                self.kv_capacity,
                self.kept,
            ]
        )

    def line(self, stats: EngineStats) -> str | None:
        """What happened since the last line; None when nothing did."""
        now = time.monotonic()
        (then, old), self._last = self._last, (now, stats)
        if stats == old and not stats.running and not stats.waiting:
            return None
        seconds = max(now - then, 1e-9)
        return (
            f"running {stats.running}, waiting {stats.waiting}; in the last {seconds:.0f} s: "
            f"{(stats.generated_tokens - old.generated_tokens) / seconds:.1f} tokens/s, "
            f"{stats.finished - old.finished} finished, {stats.failed - old.failed} failed, "
            f"{stats.cancelled - old.cancelled} cancelled"
            + (f"; {stats.restarts} restarts, the last because of: {stats.last_death}" if stats.restarts else "")
        )
