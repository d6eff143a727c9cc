"""The in-process engine: a transformers model that answers many requests at once.

Promises: a greedy answer is token for token that of `generate` in fp32, whatever runs beside it; sampling with a seed
is repeatable; a request that fails, fails alone. Knows nothing of files or the command line.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from swift.engines.batch import CausalModel
from swift.engines.grammar import GrammarCompiler, grammars_of
from swift.engines.limits import Lengths
from swift.engines.lora import Adapter, Loras
from swift.engines.pooling import Pooler, Queue, causal_vectors
from swift.engines.prepack import prepack
from swift.engines.protocol import (
    Capabilities,
    Delta,
    EngineStats,
    GenerationRequest,
    RequestError,
    Sampling,
    Text,
    closed,
)
from swift.engines.ragged import RaggedModel, Rows, kv_capacity
from swift.engines.sampling import MOST_LOGPROBS, Sampler, SamplingRule
from swift.engines.scheduler import Scheduler
from swift.engines.sequence import GenerationState
from swift.engines.stream import GenerationStream
from swift.hub.resources import available_memory

log = logging.getLogger("swift")
T = TypeVar("T")

# Fields of Sampling that `generate`'s beam search doesn't know as this engine does.
BEAMLESS = (
    "logprobs",
    "prompt_logprobs",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "min_new_tokens",
    "grammar",
)
PREFILL_CHUNK = 256  # prompt tokens computed between two steps of the others


class PtEngine:
    """`encoder` (a ChatEncoder) is needed for requests that bring messages.

    `context_length` in tokens (None: the model's own) bounds prompt and answer together. A prompt longer than
    `prompt_limit` is refused (`truncation` "delete") or cut on its "left" or "right". `end_ids` end an answer beside
    those of the model's generation settings and of the encoder.
    """

    name = "pt"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        encoder: Any = None,
        *,
        max_batch_size: int = 8,
        context_length: int | None = None,
        prompt_limit: int | None = None,
        truncation: str = "delete",
        end_ids: Iterable[int] = (),
    ):
        self._tokenizer, self._encoder = tokenizer, encoder
        self._generation_config = model.generation_config
        self._end_ids = frozenset(end_ids) | _ids(model.generation_config.eos_token_id)
        if encoder is not None:
            self._end_ids |= frozenset(encoder.stop_token_ids)
        self._hidden_ids = _ids(tokenizer.pad_token_id) | _ids(tokenizer.bos_token_id)
        own_context = model.config.get_text_config().to_dict().get("max_position_embeddings")
        context = context_length or own_context
        self._lengths = Lengths(context, prompt_limit, truncation, model.generation_config.max_new_tokens)
        self._vocabulary = model.get_input_embeddings().weight.shape[0]
        tasks = frozenset({"generate", "embed"})
        self.capabilities = Capabilities(
            context, max_batch_size, inputs=True, grammars=grammars_of(tokenizer), tasks=tasks
        )
        self._grammars = GrammarCompiler(tokenizer, self._vocabulary, self._end_ids)
        self._tokenizer_lock = threading.Lock()
        note = prepack(model, (available_memory() or 0) // 2)
        notes = [note] if note else []
        self._loras = Loras(model)
        self._adapters: dict[str, Adapter] = {}
        causal = CausalModel(model, self._loras)
        ragged = RaggedModel(model, self._loras, copies=note is not None)
        if ragged.usable:
            way = "a forward pass of our own" if ragged.lean else f"the model's own forward pass: {ragged.why_not_lean}"
            notes.append(f"requests side by side without padding ({way})")
        else:
            notes.append(f"requests in padded batches ({ragged.why_not})")
        for note in notes:
            log.info("pt engine: %s", note)
        self.capabilities = replace(self.capabilities, notes=tuple(notes), loads_adapters=True)
        rows = Rows(ragged, kv_capacity(model, context)) if ragged.usable else None
        self._scheduler = Scheduler(causal, max_batch_size, self._tokenizer_lock, PREFILL_CHUNK, rows)
        self._pooler = Pooler(model, tokenizer.pad_token_id or 0, causal_vectors)
        self._queue = Queue(self._schedule, self._vectors)

    def submit(self, request: GenerationRequest) -> GenerationStream[Delta]:
        states: list[GenerationState] = []
        deltas: GenerationStream[Delta] = GenerationStream(lambda: [self._scheduler.cancel(s) for s in states])
        try:
            states.append(self._prepare(request, deltas))
        except Exception as error:
            self._scheduler.refused()
            deltas.fail(error)
            return deltas
        self._scheduler.add(states[0])
        return deltas

    def _prepare(self, request: GenerationRequest, deltas: GenerationStream[Delta]) -> GenerationState:
        sampling = request.sampling
        self.capabilities.check(request)
        self._check(sampling)
        rule = SamplingRule.of(sampling, self._generation_config)
        prompt_ids, inputs = self._prompt(request)
        end_ids = self._end_ids | frozenset(sampling.stop_token_ids)
        grammar = self._grammars.start(sampling.grammar) if sampling.grammar is not None else None
        return GenerationState(
            prompt_ids,
            Sampler(rule, sampling.seed, prompt_ids, end_ids, grammar),
            deltas,
            self._tokenizer,
            limit=self._lengths.answer(sampling, len(prompt_ids)),
            end_ids=end_ids,
            hidden_ids=self._hidden_ids,
            stops=sampling.stop,
            num_beams=sampling.num_beams,
            prompt_logprobs=sampling.prompt_logprobs,
            adapter=None if request.adapter is None else self._adapters.get(request.adapter),
            inputs=inputs,
        )

    def _check(self, sampling: Sampling) -> None:
        """What sampling rules can't know: tokens that don't exist, what doesn't go together."""
        for name in ("logit_bias", "stop_token_ids"):
            for token_id in getattr(sampling, name):
                if not 0 <= token_id < self._vocabulary:
                    raise RequestError(
                        f"{name} has the token id {token_id}, the model's vocabulary {self._vocabulary} tokens",
                        param=name,
                    )
        asked = sampling.prompt_logprobs
        if asked is not None and not 0 <= asked <= MOST_LOGPROBS:
            raise RequestError(f"prompt_logprobs must be between 0 and {MOST_LOGPROBS}", param="prompt_logprobs")
        if sampling.grammar is not None and sampling.min_new_tokens:
            raise RequestError("min_new_tokens can't be had with a grammar", param="min_new_tokens")
        if sampling.num_beams > 1:
            for name in BEAMLESS:
                if getattr(sampling, name) != getattr(Sampling(), name):
                    raise RequestError(f"{name} can't be had with beam search", fix="num_beams 1", param=name)

    def _prompt(self, request: GenerationRequest) -> tuple[list[int], Mapping[str, Any] | None]:
        """The prompt's ids, and the tensors that the model takes beside them."""
        inputs = request.inputs
        if (request.prompt_ids is None) == (request.messages is None):
            raise RequestError("a request has either messages or prompt_ids")
        if request.prompt_ids is not None:
            ids = list(request.prompt_ids)
        elif self._encoder is None:
            raise RequestError("this engine has no chat template: send prompt_ids")
        else:
            with self._tokenizer_lock:
                ids, inputs = self._encoder.prompt_inputs(request.messages, request.tools)
        if not ids:
            raise RequestError("the prompt is empty", param="prompt")
        if not 0 <= min(ids) <= max(ids) < self._vocabulary:
            wrong = next(i for i in ids if not 0 <= i < self._vocabulary)
            raise RequestError(
                f"the prompt has the token id {wrong}, the model's vocabulary {self._vocabulary} tokens",
                param="prompt_ids",
            )
        return self._lengths.cut(list(ids), whole=inputs is not None), inputs

    def in_model_thread(self, work: Callable[[Any], T]) -> Future[T]:
        """Call `work(model)` between two steps of the running requests, in the thread that owns the model, without
        gradients. Requests wait while it works: divide long work into several calls.
        """
        return self._scheduler.call(work)

    def numbers(self, texts: Sequence[Text], adapter: str | None = None) -> list[Future[list[float]]]:
        """Vectors: the last token's last hidden state, of length 1."""
        self.capabilities.check_adapter(adapter)
        if any(not 0 <= i < self._vocabulary for text in texts for i in text.ids):
            raise RequestError(f"a token id is not one of the model's {self._vocabulary}", param="input")
        return self._queue.add(texts, None if adapter is None else self._adapters[adapter])

    def _vectors(self, texts: Sequence[Text], adapter: Adapter | None) -> list[list[float]]:
        with self._loras.using([] if adapter is None else [(adapter, None)]):
            return self._pooler.batch(texts)

    def _schedule(self, turn: Callable[[], None]) -> None:
        called = self.in_model_thread(lambda model: turn())
        if called.done() and called.exception() is not None:
            self._queue.fail(closed())

    def load_adapter(self, name: str, path: Path) -> None:
        if name in self._adapters:
            raise RequestError(f"an adapter named {name!r} is loaded already", fix="unload it first", param="adapter")
        loaded = self.in_model_thread(lambda model: self._loras.load(name, path)).result()
        self._keep({**self._adapters, name: loaded})

    def unload_adapter(self, name: str) -> None:
        """Requests that use it go on with it."""
        if name not in self._adapters:
            raise RequestError(f"no adapter named {name!r} is loaded", param="adapter")
        gone = self._adapters[name]
        self._keep({other: adapter for other, adapter in self._adapters.items() if other != name})
        self.in_model_thread(lambda model: self._scheduler.forget(gone)).result()

    def _keep(self, adapters: dict[str, Adapter]) -> None:
        self._adapters = adapters
        self.capabilities = replace(self.capabilities, adapters=tuple(adapters))

    def stats(self) -> EngineStats:
        return self._scheduler.stats()

    def close(self) -> None:
        self._scheduler.close()
        self._queue.fail(closed())


def _ids(value: int | list[int] | None) -> frozenset[int]:
    """Token ids of a setting that may be absent, one id or several."""
    if value is None:
        return frozenset()
    return frozenset(value if isinstance(value, (list, tuple)) else [value])
