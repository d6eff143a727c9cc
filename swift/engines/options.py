"""Which options go with which engine. An option that an engine can't honour is refused, not ignored."""

from __future__ import annotations

from swift.config.commands import EngineConfig
from swift.errors import UsageError

SERVERS = ("vllm", "sglang", "lmdeploy")
OUTSIDE = (*SERVERS, "http")  # the backends that are servers
# What the pt engine alone understands, and what does it for a server.
PT_ONLY = ("attn_impl", "experts_impl", "device_map", "max_memory", "rope_scaling", "new_special_tokens")
HTTP_KNOWS = ("model", "max_model_len", "system")
# which backends an option is for, where its name doesn't say it
OWNERS = {
    "base_url": ("http",),
    "engine_api_key": ("http",),
    "engine_python": SERVERS,
    "engine_start_timeout": SERVERS,
}


def check_backend(config: EngineConfig) -> None:
    """UsageError for options that --infer_backend doesn't have, before anything is loaded."""
    backend = config.engine.infer_backend
    given = [name for name in config.specs() if config.given(name)]
    for name in given:
        owner = name.partition("_")[0]
        if owner in SERVERS and owner != backend:
            raise UsageError(
                f"is an option of {owner}", where=f"--{name}", fix=f"--infer_backend {owner}, or leave it out"
            )
    for name, backends in OWNERS.items():
        if config.given(name) and backend not in backends:
            fix = f"--infer_backend {' or '.join(backends)}"
            raise UsageError(f"has no effect with the {backend} backend", where=f"--{name}", fix=fix)
    if backend == "fake" and config.model.adapters:
        raise UsageError("has no effect with the fake backend", where="--adapters", fix="leave it out")
    if backend in OUTSIDE:
        section = {name: spec.section for name, spec in config.specs().items()}
        refused = [name for name in given if name in PT_ONLY or section[name] == "quantization"]
        if backend == "http":
            check_http(config)
            refused += [n for n in given if section[n] in ("model", "chat") and n not in HTTP_KNOWS]
        for name in refused:
            fix = f"--{backend}_engine_kwargs '{{...}}' reaches the server" if backend in SERVERS else "leave it out"
            raise UsageError(f"has no effect with the {backend} backend", where=f"--{name}", fix=fix)


def check_http(config: EngineConfig) -> None:
    url = config.backends.base_url
    fix = "--base_url http://HOST:PORT/v1"
    if url is None:
        raise UsageError("the http backend needs an address", where="--infer_backend http", fix=fix)
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is no address", where="--base_url", fix=fix)
    if config.model.adapters:
        raise UsageError(
            "adapters are the server's business", where="--adapters", fix="name it: --model ADAPTERS_NAME_THERE"
        )
