"""Continuous batching: one thread that lets requests join and leave the running batch between decode steps.

Promises: every state handed in ends (its answer, its error, or cancelled), also when the model fails: then the rows
of the failed batch are computed again each on its own, so that only the one at fault fails. Long prompts are computed
in chunks between the steps of the others. Knows nothing of requests, templates or texts.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

import torch

from swift.engines.batch import Batch, CausalModel
from swift.engines.protocol import EngineError, EngineStats, RequestError
from swift.engines.sampling import choose
from swift.engines.sequence import GenerationState
from swift.engines.whole import generate_whole
from swift.errors import ResourceError, SwiftError

T = TypeVar("T")


class Scheduler:
    """`max_rows` requests run at once; a prefill computes at most about `chunk` columns or `chunk` tokens at a time.

    `lock` guards the tokenizer, which readers' threads use too.
    """

    def __init__(self, model: CausalModel, max_rows: int, lock: threading.Lock, chunk: int):
        self._model, self._max_rows, self._lock, self._chunk = model, max_rows, lock, chunk
        self._changed = threading.Condition()
        self._waiting: deque[GenerationState] = deque()
        self._calls: deque[tuple[Callable[[Any], Any], Future[Any]]] = deque()
        self._prefilling: deque[Batch] = deque()
        self._running: list[Batch] = []
        self._stats = EngineStats()
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="swift-pt-engine", daemon=True)
        self._thread.start()

    def add(self, state: GenerationState) -> None:
        with self._changed:
            if self._closing:
                state.stream.fail(RequestError("the engine is closed"))
                return
            self._waiting.append(state)
            self._changed.notify_all()

    def cancel(self, state: GenerationState) -> None:
        with self._changed:
            state.cancelled = True
            self._changed.notify_all()

    def call(self, work: Callable[[Any], T]) -> Future[T]:
        """Have `work(model)` done in the engine's thread, between two steps."""
        future: Future[T] = Future()
        with self._changed:
            if self._closing:
                future.set_exception(RequestError("the engine is closed"))
            else:
                self._calls.append((work, future))
                self._changed.notify_all()
        return future

    def stats(self) -> EngineStats:
        with self._changed:
            return replace(self._stats, running=self._rows(), waiting=len(self._waiting))

    def close(self) -> None:
        """Cancel everything and stop the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _rows(self) -> int:
        return sum(len(batch.states) for batch in (*self._prefilling, *self._running))

    def _count(self, **more: int) -> None:
        with self._changed:
            self._stats = replace(self._stats, **{name: getattr(self._stats, name) + n for name, n in more.items()})

    # The rest runs in the engine's thread.

    @torch.inference_mode()
    def _loop(self) -> None:
        # Ctrl-C is for the main thread: it may be waiting in input(), which only its own signals interrupt.
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        while True:
            with self._changed:
                while not (self._closing or self._calls or self._waiting or self._prefilling or self._running):
                    self._changed.wait()
                if self._closing:
                    break
            self._do_calls()
            self._drop_cancelled()
            self._admit()
            if self._prefilling:
                self._prefill(self._prefilling.popleft())
            for batch in self._running:
                self._guarded(batch, self._step)
            self._running = [batch for batch in self._running if batch.states]
        self._cancel_all()

    def _do_calls(self) -> None:
        while self._calls:
            work, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work(self._model.model))
            except BaseException as error:  # whatever it is, it belongs to the caller and not to this loop
                future.set_exception(error)

    def _drop_cancelled(self) -> None:
        with self._changed:
            gone = [state for state in self._waiting if state.cancelled]
            self._waiting = deque(state for state in self._waiting if not state.cancelled)
        for batch in (*self._prefilling, *self._running):
            leaving = [state for state in batch.states if state.cancelled]
            # A batch in the middle of its prefill has its prompts side by side: its cancelled rows leave at its end.
            if leaving and (batch in self._running or len(leaving) == len(batch.states)):
                batch.keep([i for i, state in enumerate(batch.states) if not state.cancelled])
                gone += leaving
        self._prefilling = deque(batch for batch in self._prefilling if batch.states)
        self._running = [batch for batch in self._running if batch.states]
        for state in gone:
            self._finish_cancelled(state)

    def _finish_cancelled(self, state: GenerationState) -> None:
        state.finish_cancelled()
        self._count(cancelled=1, generated_tokens=state.generated, prompt_tokens=state.prompt_length)

    def _cancel_all(self) -> None:
        with self._changed:
            states = [*self._waiting, *(s for batch in (*self._prefilling, *self._running) for s in batch.states)]
            self._waiting.clear()
            self._prefilling.clear()
            self._running.clear()
            calls, self._calls = self._calls, deque()
        for state in states:
            self._finish_cancelled(state)
        for _, future in calls:
            future.cancel()

    def _admit(self) -> None:
        """Give free rows to those who wait: short prompts side by side, a long prompt on its own."""
        room = self._max_rows - self._rows()
        with self._changed:
            chosen = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        group: list[GenerationState] = []
        for state in chosen:
            if state.num_beams > 1 or state.inputs is not None or not self._model.can_step:
                self._whole(state)
            elif state.alone or len(state.ids) > self._chunk or not self._model.can_pad:
                self._prefilling.append(Batch(self._model, [state], self._chunk))
            else:
                longest = max(len(s.ids) for s in (*group, state))
                if group and longest * (len(group) + 1) > 4 * self._chunk:
                    self._prefilling.append(Batch(self._model, group, self._chunk))
                    group = []
                group.append(state)
        if group:
            self._prefilling.append(Batch(self._model, group, self._chunk))

    def _prefill(self, batch: Batch) -> None:
        done = self._guarded(batch, self._prefill_chunk)
        if not batch.states:
            return
        if not done:
            self._prefilling.append(batch)
            return
        hosts = [host for host in self._running if not host.states[0].alone]
        if hosts and self._model.can_batch and not batch.states[0].alone:
            hosts[0].join(batch)
        else:
            self._running.append(batch)

    def _prefill_chunk(self, batch: Batch) -> bool:
        logits = batch.prefill()
        if logits is not None:
            self._deal(batch, logits)
        return logits is not None

    def _step(self, batch: Batch) -> bool:
        self._deal(batch, batch.step())
        return True

    def _guarded(self, batch: Batch, work: Callable[[Batch], bool]) -> bool:
        """Do it; if the model fails, the rows start again each on its own, or fail if they were alone already."""
        try:
            return work(batch)
        except Exception as error:
            states, batch.states = batch.states, []
            if len(states) == 1:
                self._fail(states[0], error)
            else:
                for state in states:
                    state.alone = True
                with self._changed:
                    self._waiting.extendleft(reversed(states))
            return False

    def _fail(self, state: GenerationState, error: Exception) -> None:
        state.stream.fail(_explained(error))
        self._count(failed=1, generated_tokens=state.generated, prompt_tokens=state.prompt_length)

    def _deal(self, batch: Batch, logits: torch.Tensor) -> None:
        """Choose each row's next token and give it to its reader; rows that are complete leave."""
        staying = []
        choices = choose(logits, [state.sampler for state in batch.states])
        for row, (state, choice) in enumerate(zip(batch.states, choices, strict=True)):
            if isinstance(choice, Exception):
                self._fail(state, choice)
                continue
            try:
                with self._lock:
                    complete = state.finish_prompt_alone() if state.limit == 0 else state.accept(choice)
            except Exception as error:
                self._fail(state, error)
                continue
            if complete:
                self._count(finished=1, generated_tokens=state.generated, prompt_tokens=state.prompt_length)
            else:
                staying.append(row)
        batch.keep(staying)

    def _whole(self, state: GenerationState) -> None:
        try:
            with self._lock:
                generate_whole(self._model.model, state)
        except Exception as error:
            self._fail(state, error)
            return
        self._count(finished=1, generated_tokens=state.generated, prompt_tokens=state.prompt_length)


def _explained(error: Exception) -> SwiftError:
    """What a reader is told of a failure inside the model."""
    if isinstance(error, SwiftError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        told: SwiftError = ResourceError(
            "the device has not enough memory for this request", fix="a shorter prompt or answer, or a smaller model"
        )
    else:
        told = EngineError(f"the model failed on this request: {type(error).__name__}: {error}")
    told.__cause__ = error
    return told
