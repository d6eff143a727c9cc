"""Texts into numbers: vectors, scores, classes. What a model's forward pass gives for a batch of them, the queue in
front of it, and the engine of models that write no text.

Promises: a text's numbers don't depend on what shares its batch; texts of like length share one; a text that fails
fails alone. Knows nothing of files, templates or the command line.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from swift.engines.protocol import (
    Capabilities,
    Delta,
    EngineError,
    EngineStats,
    GenerationRequest,
    RequestError,
    Text,
    closed,
)
from swift.engines.stream import GenerationStream
from swift.models.sentence import pooled

log = logging.getLogger("swift")

TOKENS_A_BATCH = 4096
Numbers = list[list[float]]


class Pooler:
    """What a loaded model makes of texts: `read(model, ids, mask, halves)` gives float32 [texts, numbers] on any
    device, for ids, mask and halves int64 [texts, length], right-padded; halves is None where no text has any.
    """

    def __init__(self, model: Any, pad_id: int, read: Callable[..., torch.Tensor]):
        self.model, self._pad_id, self._read = model, pad_id, read
        self._device = next(model.parameters()).device

    def batch(self, texts: Sequence[Text]) -> Numbers:
        width = max(len(text.ids) for text in texts)
        ids = self._padded([text.ids for text in texts], width, self._pad_id)
        mask = self._padded([[1] * len(text.ids) for text in texts], width, 0)
        paired = any(text.halves for text in texts)
        halves = self._padded([text.halves or () for text in texts], width, 0) if paired else None
        with torch.inference_mode():
            return self._read(self.model, ids, mask, halves).tolist()

    def all(self, texts: Sequence[Text]) -> Numbers:
        """The numbers of many texts in their order."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
        found: Numbers = [[]] * len(texts)
        while order:
            size = fitting([len(texts[i].ids) for i in order])
            chosen, order = order[:size], order[size:]
            for i, values in zip(chosen, self.batch([texts[i] for i in chosen]), strict=True):
                found[i] = values
        return found

    def _padded(self, rows: Sequence[Sequence[int]], width: int, pad: int) -> torch.Tensor:
        return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=self._device)


def fitting(lengths: Sequence[int]) -> int:
    """How many of the first texts, of growing lengths, make one batch."""
    size = 1
    while size < len(lengths) and (size + 1) * lengths[size] <= TOKENS_A_BATCH:
        size += 1
    return size


def causal_vectors(model: Any, ids: torch.Tensor, mask: torch.Tensor, halves: Any) -> torch.Tensor:
    """A language model's: the last token's last hidden state, of length 1. As `last_hidden` of training computes it,
    without the other layers' hidden states and without the vocabulary's head.
    """
    inner = model.get_base_model() if getattr(model, "peft_config", None) else model
    hidden = inner.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return torch.nn.functional.normalize(pooled(hidden, mask, ("lasttoken",)), dim=-1)


def sentence_vectors(modes: tuple[str, ...], dense: Sequence[Any] = (), normalize: bool = True) -> Callable[..., Any]:
    """Those of models without any head, by sentence-transformers' pooling modes and the layers behind them."""

    def read(model: Any, ids: torch.Tensor, mask: torch.Tensor, halves: Any) -> torch.Tensor:
        output = model(input_ids=ids, attention_mask=mask)
        vectors = pooled(output.last_hidden_state, mask, modes)
        for layer in dense:
            vectors = layer(vectors)
        return torch.nn.functional.normalize(vectors, dim=-1) if normalize else vectors

    return read


def classes(problem: str | None) -> Callable[..., torch.Tensor]:
    """A classifier's: probabilities, of each class by itself where a text may have several (or there is only one), and
    plain numbers for "regression".
    """

    def read(model: Any, ids: torch.Tensor, mask: torch.Tensor, halves: Any) -> torch.Tensor:
        extra = {} if halves is None else {"token_type_ids": halves}
        logits = model(input_ids=ids, attention_mask=mask, **extra).logits.float()
        if problem == "regression":
            return logits
        return logits.sigmoid() if problem == "multi_label_classification" else logits.softmax(dim=-1)

    return read


class Queue:
    """Texts that wait for a model. `schedule(turn)` has `turn` called soon, in the thread that owns the model, or
    raises; `run(texts, adapter)` computes one batch there.
    """

    def __init__(
        self,
        schedule: Callable[[Callable[[], None]], None],
        run: Callable[[Sequence[Text], Any], Numbers],
        told: Callable[..., None] = lambda **counts: None,
    ):
        self._schedule, self._run, self._told = schedule, run, told
        self._lock = threading.Lock()
        self._pending: list[tuple[Text, Any, Future[list[float]]]] = []

    @property
    def waiting(self) -> int:
        return len(self._pending)

    def add(self, texts: Sequence[Text], adapter: Any) -> list[Future[list[float]]]:
        if not all(text.ids for text in texts):
            raise RequestError("a text has no tokens", param="input")
        futures: list[Future[list[float]]] = [Future() for _ in texts]
        with self._lock:
            self._pending += [(text, adapter, future) for text, future in zip(texts, futures, strict=True)]
        self._schedule(self._turn)
        return futures

    def fail(self, error: Exception) -> None:
        """Everything that waits fails."""
        with self._lock:
            pending, self._pending = self._pending, []
        for _, _, future in pending:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _turn(self) -> None:
        """One batch: the oldest text, and those of its adapter and of like length that wait with it."""
        chosen = self._take()
        if chosen:
            self._compute(chosen)
        with self._lock:
            more = bool(self._pending)
        if more:
            self._schedule(self._turn)

    def _take(self) -> list[tuple[tuple[Text, Any], Future[list[float]]]]:
        with self._lock:
            self._pending = [entry for entry in self._pending if not entry[2].cancelled()]
            if not self._pending:
                return []
            first, adapter, _ = self._pending[0]
            near = sorted(
                (entry for entry in self._pending if entry[1] == adapter),
                key=lambda entry: abs(len(entry[0].ids) - len(first.ids)),
            )
            size = 0
            while size < len(near) and (size + 1) * max(len(e[0].ids) for e in near[: size + 1]) <= TOKENS_A_BATCH:
                size += 1
            batch = near[: max(size, 1)]
            taken = {id(entry) for entry in batch}
            self._pending = [entry for entry in self._pending if id(entry) not in taken]
        return [((text, name), future) for text, name, future in batch if future.set_running_or_notify_cancel()]

    def _compute(self, chosen: Sequence[tuple[tuple[Text, Any], Future[list[float]]]]) -> None:
        texts, adapter = [text for (text, _), _ in chosen], chosen[0][0][1]
        try:
            found = self._run(texts, adapter)
        except Exception as error:
            if len(chosen) > 1:  # the one at fault fails alone
                for one in chosen:
                    self._compute([one])
                return
            log.warning("a text of %d tokens failed: %s", len(texts[0].ids), error)
            told = EngineError(f"the model failed on this text: {type(error).__name__}: {error}")
            told.__cause__ = error
            chosen[0][1].set_exception(told)
            self._told(failed=1)
            return
        self._told(finished=len(chosen), prompt_tokens=sum(len(text.ids) for text in texts))
        for (_, future), values in zip(chosen, found, strict=True):
            future.set_result(values)


class PoolingEngine:
    """A model that writes no text, as an engine. `tasks`: see Capabilities; `context_length` in tokens."""

    name = "pt"

    def __init__(self, pooler: Pooler, tasks: frozenset[str], context_length: int | None, notes: tuple[str, ...] = ()):
        self.capabilities = Capabilities(context_length, max_concurrency=64, tasks=tasks, notes=notes)
        self._pooler = pooler
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="swift-pooling")
        self._lock = threading.Lock()
        self._stats = EngineStats()
        self._queue = Queue(self._schedule, lambda texts, _: self._pooler.batch(texts), self._count)

    def _schedule(self, turn: Callable[[], None]) -> None:
        try:
            self._thread.submit(turn)
        except RuntimeError:  # it is shut down
            self._queue.fail(closed())

    def _count(self, **more: int) -> None:
        with self._lock:
            self._stats = replace(self._stats, **{name: getattr(self._stats, name) + n for name, n in more.items()})

    def submit(self, request: GenerationRequest) -> GenerationStream[Delta]:
        deltas: GenerationStream[Delta] = GenerationStream(lambda: None)
        try:
            self.capabilities.check(request)
        except RequestError as error:
            deltas.fail(error)
        return deltas

    def numbers(self, texts: Sequence[Text], adapter: str | None = None) -> list[Future[list[float]]]:
        self.capabilities.check_adapter(adapter)
        return self._queue.add(texts, adapter)

    def load_adapter(self, name: str, path: Path) -> None:
        raise RequestError("this engine loads no adapters while it runs", fix="swift export --merge_lora true")

    def unload_adapter(self, name: str) -> None:
        raise RequestError(f"no adapter named {name!r} is loaded", param="adapter")

    def stats(self) -> EngineStats:
        with self._lock:
            return replace(self._stats, waiting=self._queue.waiting)

    def close(self) -> None:
        self._queue.fail(closed())
        self._thread.shutdown(wait=True, cancel_futures=True)
