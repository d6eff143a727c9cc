"""A model in this process answers: log-likelihoods by trees of tokens, texts by the pt engine.

Texts become ids as lm-evaluation-harness' own `hf` model does it, so that the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from swift.engines.protocol import GenerationRequest, Sampling, generate_all
from swift.engines.pt import PtEngine
from swift.engines.scoring import LogLikelihoods
from swift.evaluate.answering import Ask, Generated
from swift.evaluate.thinking import opening, without_reasoning

DEFAULT_CONTEXT = 2048  # where neither options nor config.json say how long a context may be


class LocalModel:
    """`encoder` is the ChatEncoder, or what stands for it; `max_length` in tokens bounds context and continuation."""

    scores = True

    def __init__(self, model: Any, tokenizer: Any, encoder: Any, max_length: int | None, batch: int, chats: bool):
        self.name = "pt"
        self.chats = chats
        self._model, self._tokenizer, self._encoder = model, tokenizer, encoder
        own = model.config.get_text_config().to_dict().get("max_position_embeddings")
        self._max_length = max_length or own or DEFAULT_CONTEXT
        self._scorer = LogLikelihoods(model, self._max_length)
        self._engine: PtEngine | None = None
        self._batch = batch
        self._spent: dict[str, int] = {}
        self.facts: Mapping[str, Any] = {
            "engine": "pt",
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.get_input_embeddings().weight.device),
            "context": self._max_length,
        }

    def _ids(self, text: str, special: bool | None = None) -> list[int]:
        bos = self._tokenizer.bos_token
        if special is None and bos and text.startswith(bos):
            special = False  # the text brings its own beginning, as rendered conversations do
        extra = {} if special is None else {"add_special_tokens": special}
        return self._tokenizer.encode(text, verbose=False, **extra)

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not context:
            ids = self._ids(continuation, special=False)
            start = self._tokenizer.bos_token_id
            start = self._tokenizer.eos_token_id if start is None else start
            return (ids[:1], ids[1:]) if ids[0] == start else ([start], ids)
        spaces = len(context) - len(context.rstrip())
        if spaces:  # blanks belong to the word that follows them
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        whole, beginning = self._ids(context + continuation), self._ids(context)
        return beginning, whole[len(beginning) :]

    def score(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[int, tuple[float, bool]]]:
        ids = [self._pair(*pair) for pair in pairs]
        before = self._scorer.tokens, self._scorer.truncated
        for index, score in self._scorer.score(ids):
            yield index, (score.logprob, score.greedy)
        self._count(scored=self._scorer.tokens - before[0], truncated=self._scorer.truncated - before[1])

    def generate(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Generated]]:
        if self._engine is None:
            self._engine = PtEngine(
                self._model, self._tokenizer, self._encoder, max_batch_size=self._batch, context_length=self._max_length
            )
        prompts = [self._ids(ask.prompt) for ask in asks]
        order = sorted(range(len(asks)), key=lambda i: len(prompts[i]))
        requests = (self._request(asks[i], prompts[i]) for i in order)
        for index, result in zip(order, generate_all(self._engine, requests), strict=True):
            if result.error is not None:
                raise result.error
            self._count(prompt=result.usage.prompt_tokens, generated=result.usage.completion_tokens)
            text = result.text
            if asks[index].chat:
                text = without_reasoning(opening(asks[index].prompt) + text, self._encoder)
            usage = result.usage
            yield index, Generated(text, usage.prompt_tokens, usage.completion_tokens, result.finish_reason)

    def _request(self, ask: Ask, ids: list[int]) -> GenerationRequest:
        room = max(self._max_length - ask.most, self._max_length // 2)
        if len(ids) > room:
            self._count(truncated=1)
            ids = ids[-room:]
        sampling = Sampling(
            max_new_tokens=ask.most,
            temperature=ask.temperature,
            top_k=ask.top_k,
            top_p=ask.top_p,
            repetition_penalty=ask.repetition_penalty,
            stop=ask.until,
            seed=ask.seed,
        )
        return GenerationRequest(prompt_ids=ids, sampling=sampling)

    def chat_prompt(self, messages: list[dict[str, str]], opened: bool) -> str:
        return self._encoder.prompt_text(messages)

    def _count(self, **more: int) -> None:
        for name, number in more.items():
            self._spent[name] = self._spent.get(name, 0) + number

    def spent(self) -> dict[str, int]:
        spent, self._spent = self._spent, {}
        return spent

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
