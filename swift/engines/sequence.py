"""One request on its way through the pt engine: its tokens so far, and what its reader gets for each new one.

Knows nothing of batches or caches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from swift.engines.detokenize import Detokenizer, StopSearch, decode
from swift.engines.protocol import Delta, TokenLogprob, Usage
from swift.engines.sampling import Sampler, TokenChoice
from swift.engines.stream import GenerationStream


class GenerationState:
    """`ids` are the prompt and what has been generated. At most `limit` tokens are generated; `end_ids` end the answer.

    `inputs` are the tensors that the model takes beside the prompt's ids, `adapter` is what changes the model for it.
    `hidden_ids` leave no text. `cancelled` is
    a wish of the reader's; `alone` says that no other row may be beside it.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        sampler: Sampler,
        stream: GenerationStream[Delta],
        tokenizer: Any,
        *,
        limit: int,
        end_ids: frozenset[int],
        hidden_ids: frozenset[int],
        stops: Sequence[str] = (),
        num_beams: int = 1,
        prompt_logprobs: int | None = None,
        inputs: Mapping[str, Any] | None = None,
        adapter: Any = None,
    ):
        self.ids = list(prompt_ids)
        self.inputs, self.adapter = inputs, adapter
        self.prompt_length = len(self.ids)
        self.sampler, self.stream = sampler, stream
        self.limit, self.end_ids, self.num_beams = limit, end_ids, num_beams
        self.prompt_logprobs = prompt_logprobs
        self.prompt_scores: list[TokenChoice] = []  # of the prompt's tokens from its second on, as they are computed
        self.cached = 0  # tokens of the prompt that an earlier request had computed
        self.deaths = 0  # of the engine while this was under way
        self.cancelled = False
        self.counted = False  # its tokens are in the engine's sums
        self.alone = num_beams > 1
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, hidden_ids | end_ids)
        self._stops = StopSearch(stops)

    @property
    def generated(self) -> int:
        return len(self.ids) - self.prompt_length

    @property
    def usage(self) -> Usage:
        return Usage(self.prompt_length, self.generated, self.cached)

    def begin_again(self) -> None:
        """What was computed is lost; what the reader has, he keeps."""
        self.prompt_scores = []

    def accept(self, choice: TokenChoice) -> bool:
        """Take the next token and tell the reader; True when the answer is complete."""
        self.ids.append(choice.token_id)
        text = self._stops.push(self._detokenizer.push(choice.token_id))
        reason = None
        if choice.token_id in self.end_ids or self._stops.found is not None:
            reason = "stop"
        elif self.generated >= self.limit:
            reason = "length"
        if reason is not None:
            text += self._rest()
            reason = "stop" if self._stops.found is not None else reason
        logprobs = () if choice.logprob is None else (self._logprob(choice, choice.logprob),)
        usage = self.usage if reason else None
        self._put(Delta(text, (choice.token_id,), logprobs, reason, usage, self._stops.found))
        if reason is not None:
            self.stream.end()
        return reason is not None

    def finish_prompt_alone(self) -> bool:
        """The answer of a request that wants no new token; it is complete."""
        self._put(Delta(finish_reason="length", usage=self.usage))
        self.stream.end()
        return True

    def _put(self, delta: Delta) -> None:
        if self.prompt_logprobs is not None:
            scores = [self._logprob(choice, p) for choice in self.prompt_scores if (p := choice.logprob) is not None]
            delta, self.prompt_scores = replace(delta, prompt_logprobs=(None, *scores)), []
            self.prompt_logprobs = None  # told once
        self.stream.put(delta)

    def finish_cancelled(self) -> None:
        self.stream.put(Delta(text=self._rest(), finish_reason="cancelled", usage=self.usage))
        self.stream.end()

    def _rest(self) -> str:
        """The text still held back, when nothing more will come."""
        if self._stops.found is not None:
            return ""
        shown = self._stops.push(self._detokenizer.flush())
        return shown if self._stops.found is not None else shown + self._stops.flush()

    def _logprob(self, choice: TokenChoice, logprob: float) -> TokenLogprob:
        top = tuple((i, decode(self._tokenizer, [i]), p) for i, p in choice.top)
        return TokenLogprob(choice.token_id, decode(self._tokenizer, [choice.token_id]), logprob, top)
