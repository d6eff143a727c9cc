"""One chat call, whatever API it came through: its prompt, its answers, and the pieces of these as they come.

Knows the engine protocol and the pieces of a reply, and no API's shapes.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from swift.engines.protocol import Delta, GenerationRequest, Sampling, TokenLogprob, Usage, choices
from swift.serve.forcing import Wanted
from swift.serve.prompts import Prompt
from swift.serve.replies import Content, Piece, Reasoning, ReplyReader, ToolCall
from swift.serve.service import Answers, Service

log = logging.getLogger("swift.serve")


@dataclass(frozen=True)
class ChatCall:
    """`tools` in the form that templates read. `n` answers; `one_call`: at most one tool call each; `wanted`: their
    forced form.

    `variables` are for the chat template.
    """

    model: str
    messages: Sequence[Mapping[str, Any]]
    sampling: Sampling = Sampling()
    tools: Sequence[Mapping[str, Any]] = ()
    adapter: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    n: int = 1
    one_call: bool = False
    wanted: Wanted = Wanted()


class Step(NamedTuple):
    """What came at once: pieces of the answer `index`, and the engine's delta that they were made of."""

    index: int
    pieces: list[Piece]
    delta: Delta


@dataclass
class Reply:
    """A whole answer."""

    reasoning: str = ""
    content: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str = "stop"

    def add(self, step: Step) -> None:
        for piece in step.pieces:
            if isinstance(piece, Reasoning):
                self.reasoning += piece.text
            elif isinstance(piece, Content):
                self.content += piece.text
            else:
                self.calls.append(piece)
        self.logprobs += step.delta.logprobs
        self.finish_reason = step.delta.finish_reason or self.finish_reason


class Replies:
    """The answers to a chat call, as an async context manager; leaving it cancels what runs."""

    def __init__(self, service: Service, call: ChatCall):
        self._service, self._call = service, call
        self._answers: Answers | None = None
        self._iterator: AsyncGenerator[Step, None] | None = None
        self.prompt_tokens: int | None = None

    async def __aenter__(self) -> Replies:
        call, service = self._call, self._service
        prompt: Prompt = await service.in_thread(
            service.prompts.chat, call.messages, call.tools or None, call.variables
        )
        self.prompt_tokens = prompt.tokens
        if service.settings.verbose:
            log.info("prompt: %s", service.prompts.decode(prompt.prompt_ids) if prompt.prompt_ids else prompt.messages)
        grammar = service.forcing.grammar(service.engine, call.wanted, call.tools, prompt.opening)
        request = GenerationRequest(
            messages=prompt.messages,
            tools=prompt.tools,
            prompt_ids=prompt.prompt_ids,
            inputs=prompt.inputs,
            adapter=call.adapter,
            sampling=replace(call.sampling, grammar=grammar),
        )
        form = service.forcing.form(service.form, call.wanted)
        self._readers = [ReplyReader(form, call.tools, call.one_call, prompt.opening) for _ in range(call.n)]
        self._answers = Answers(service, choices(request, call.n))
        await self._answers.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._answers is not None
        if self._iterator is not None:
            await self._iterator.aclose()
        await self._answers.__aexit__(*exc_info)

    def __aiter__(self) -> AsyncIterator[Step]:
        self._iterator = self._steps()
        return self._iterator

    async def _steps(self) -> AsyncGenerator[Step, None]:
        assert self._answers is not None
        async for index, delta in self._answers:
            reader = self._readers[index]
            pieces = reader.push(delta.text) if delta.text else []
            if delta.finish_reason is not None:
                pieces += reader.finish()
                if self._service.settings.verbose:
                    log.info("answer: %s", reader.text)
            yield Step(index, pieces, delta)

    @property
    def usage(self) -> Usage:
        assert self._answers is not None
        return self._answers.usage

    async def whole(self) -> list[Reply]:
        replies = [Reply() for _ in self._readers]
        async for step in self:
            replies[step.index].add(step)
        return replies


async def whole_replies(service: Service, call: ChatCall) -> tuple[list[Reply], Usage]:
    async with Replies(service, call) as replies:
        return await replies.whole(), replies.usage
