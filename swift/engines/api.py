"""An engine from Python: `from swift import Engine`.

    with Engine("DIRECTORY_OR_NAME") as engine:
        print(engine.chat("Who are you?"))
        for piece in engine.stream("Tell me a story."):
            print(piece, end="")

Promises: it takes the options of `swift infer` by their names, old ones too, and checks them as that does; many
requests are computed together, from as many threads and tasks as there are. `achat` and `astream` are for event loops.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from swift.config.commands import InferConfig
from swift.config.parse import parse
from swift.engines import setup
from swift.engines.options import check_backend
from swift.engines.protocol import (
    Collector,
    EngineStats,
    GenerationRequest,
    RequestError,
    Result,
    Sampling,
    generate_all,
)
from swift.engines.protocol import stream as stream_deltas
from swift.engines.replies import Replies
from swift.errors import UsageError

Messages = str | Sequence[Mapping[str, Any]]
SHORT = {"max_tokens": "max_new_tokens"}


@dataclass(frozen=True)
class Answer:
    """`text` is all that was generated; `message` the same as a chat message, reasoning and tool calls apart. An answer
    of a batch may have an `error` instead.
    """

    text: str
    message: Mapping[str, Any]
    result: Result

    @property
    def error(self) -> Exception | None:
        return self.result.error

    def __str__(self) -> str:
        return self.text


class Engine:
    """`model` and `options` are those of `swift infer`; adapters by name are {"NAME": "PATH"}. Sampling settings of a
    call stand before those of the options.
    """

    def __init__(self, model: str | Path | None = None, *, adapters: Any = (), **options: Any):
        named = dict(adapters) if isinstance(adapters, Mapping) else None
        paths = list(named.values()) if named is not None else [adapters] if isinstance(adapters, str) else adapters
        given = {"model": model, "adapters": list(map(str, paths)) or None, **options}
        config = parse(InferConfig, list(_words(given))).config
        backend = config.engine.infer_backend
        check_backend(config)
        source = None
        if backend not in ("fake", "http"):
            config, source = setup.find_source(config, load_data_args=config.infer.load_data_args)
            config = setup.decide_generation(config, source.files)
        self._sampling = setup.sampling_of(config)
        self._engine, encoder = setup.build_engine(config, source, None if named is None else tuple(named))
        self._replies = Replies(encoder)

    def chat(self, messages: Messages, *, tools: Any = None, adapter: str | None = None, **sampling: Any) -> Answer:
        """The answer to a question or a conversation; raises what went wrong."""
        request = self._request(messages, tools, adapter, sampling)
        collector = Collector()
        for delta in stream_deltas(self._engine, request):
            collector.add(delta)
        return self._answer(request, collector.result())

    def stream(
        self, messages: Messages, *, tools: Any = None, adapter: str | None = None, **sampling: Any
    ) -> Iterator[str]:
        """The answer's text as it comes; leaving the loop cancels the rest."""
        for delta in stream_deltas(self._engine, self._request(messages, tools, adapter, sampling)):
            if delta.text:
                yield delta.text

    def batch(self, many: Iterable[Messages], *, adapter: str | None = None, **sampling: Any) -> list[Answer]:
        """The answers in order, computed together; one that fails has its `error`."""
        requests = [self._request(messages, None, adapter, sampling) for messages in many]
        results = generate_all(self._engine, requests)
        return [self._answer(request, result) for request, result in zip(requests, results, strict=True)]

    async def achat(
        self, messages: Messages, *, tools: Any = None, adapter: str | None = None, **sampling: Any
    ) -> Answer:
        request = self._request(messages, tools, adapter, sampling)
        collector = Collector()
        async with self._engine.submit(request) as deltas:
            async for delta in deltas:
                collector.add(delta)
        return self._answer(request, collector.result())

    async def astream(
        self, messages: Messages, *, tools: Any = None, adapter: str | None = None, **sampling: Any
    ) -> AsyncIterator[str]:
        async with self._engine.submit(self._request(messages, tools, adapter, sampling)) as deltas:
            async for delta in deltas:
                if delta.text:
                    yield delta.text

    def load_adapter(self, name: str, path: str | Path) -> None:
        self._engine.load_adapter(name, Path(path))

    def unload_adapter(self, name: str) -> None:
        self._engine.unload_adapter(name)

    @property
    def adapters(self) -> tuple[str, ...]:
        return self._engine.capabilities.adapters

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def close(self) -> None:
        self._engine.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _request(self, messages: Messages, tools: Any, adapter: str | None, given: dict[str, Any]) -> GenerationRequest:
        rows = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        known = [field.name for field in fields(Sampling)]
        settings = {SHORT.get(name, name): value for name, value in given.items()}
        for name in settings:
            if name not in known:
                near = get_close_matches(name, known, 1)
                raise RequestError(f"there is no setting {name!r}", fix=f"did you mean {near[0]}?" if near else None)
        if isinstance(settings.get("stop"), str):
            settings["stop"] = (settings["stop"],)
        return GenerationRequest(
            messages=rows, tools=tools, adapter=adapter, sampling=replace(self._sampling, **settings)
        )

    def _answer(self, request: GenerationRequest, result: Result) -> Answer:
        text = result.text
        if result.error is None:
            text = self._replies.opening(request.messages or (), request.tools) + text
        return Answer(text, self._replies.message(text, request.tools), result)


def _words(given: Mapping[str, Any]) -> Iterator[str]:
    """The options as a command line has them."""
    for name, value in given.items():
        if value is None:
            continue
        yield f"--{name}"
        if isinstance(value, bool):
            yield "true" if value else "false"
        elif isinstance(value, Mapping):
            yield json.dumps(value)
        elif isinstance(value, (str, Path, int, float)):
            yield str(value)
        elif isinstance(value, Iterable):
            yield from map(str, value)
        else:
            raise UsageError(f"a {type(value).__name__} is no value of an option", where=name)
