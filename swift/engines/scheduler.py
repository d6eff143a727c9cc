"""Continuous batching: one thread that lets requests join and leave the running batch between decode steps.

Promises: every state handed in ends (its answer, its error, or cancelled), also when the model fails: then the rows
of the failed batch are computed again each on its own, so that only the one at fault fails. Long prompts are computed
in chunks between the steps of the others. Knows nothing of requests, templates or texts.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

import torch

from swift.engines.batch import Batch, CausalModel
from swift.engines.lora import Adapter
from swift.engines.protocol import EngineError, EngineStats, closed
from swift.engines.ragged import Rows
from swift.engines.sampling import choose
from swift.engines.sequence import GenerationState
from swift.engines.whole import generate_whole
from swift.errors import ResourceError, SwiftError

log = logging.getLogger("swift")
MOST_DEATHS = 3  # of the loop that a request is tried through
T = TypeVar("T")


class Scheduler:
    """`max_rows` requests run at once; a prefill computes at most about `chunk` columns or `chunk` tokens at a time.

    `lock` guards the tokenizer, which readers' threads use too. `ragged` computes what it can; the rest, and what has
    failed there, goes through padded batches.
    """

    def __init__(self, model: CausalModel, max_rows: int, lock: threading.Lock, chunk: int, ragged: Rows | None = None):
        self._model, self._max_rows, self._lock, self._chunk, self._ragged = model, max_rows, lock, chunk, ragged
        self._changed = threading.Condition()
        self._waiting: deque[GenerationState] = deque()
        self._calls: deque[tuple[Callable[[Any], Any], Future[Any]]] = deque()
        self._prefilling: deque[Batch] = deque()
        self._running: list[Batch] = []
        self._stats = EngineStats()
        if ragged is not None:
            self._stats = replace(self._stats, kv_capacity=ragged.capacity)
        self._live: list[GenerationState] = []  # all that have come and haven't ended
        self._under_way: list[GenerationState] = []
        self._beat = time.monotonic()
        self._held = self._kept = 0 if ragged is not None else None
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="swift-pt-engine", daemon=True)
        self._thread.start()

    def add(self, state: GenerationState) -> None:
        with self._changed:
            if self._closing:
                state.stream.fail(closed())
                return
            self._waiting.append(state)
            self._live.append(state)
            self._changed.notify_all()

    def refused(self) -> None:
        """Count a request that failed before it could be added."""
        with self._changed:
            self._stats = replace(self._stats, failed=self._stats.failed + 1)

    def cancel(self, state: GenerationState) -> None:
        with self._changed:
            state.cancelled = True
            self._changed.notify_all()

    def call(self, work: Callable[[Any], T]) -> Future[T]:
        """Have `work(model)` done in the engine's thread, between two steps."""
        future: Future[T] = Future()
        with self._changed:
            if self._closing:
                future.set_exception(closed())
            else:
                self._calls.append((work, future))
                self._changed.notify_all()
        return future

    def stats(self) -> EngineStats:
        with self._changed:
            running = sum(not state.stream.ended for state in self._under_way)
            waiting, busy = len(self._waiting), bool(running or self._waiting or self._calls)
            silent = time.monotonic() - self._beat if busy else 0.0
            live = self._stats.generated_tokens + sum(state.generated for state in self._live if not state.counted)
            found = replace(self._stats, running=running, waiting=waiting, silent=silent, generated_tokens=live)
            return replace(found, kv_tokens=self._held, kept_tokens=self._kept, alive=self._thread.is_alive())

    def close(self) -> None:
        """Cancel everything and stop the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _rows(self) -> int:
        return len(self._states())

    def _states(self) -> list[GenerationState]:
        """All that are under way."""
        padded = [state for batch in (*self._prefilling, *self._running) for state in batch.states]
        return padded + (self._ragged.states if self._ragged else [])

    def _ended(self, state: GenerationState, outcome: str) -> None:
        """Count it: until then `stats` sees its tokens in the state itself."""
        more = {outcome: 1, **_tokens(state)}
        with self._changed:
            state.counted = True
            self._stats = replace(self._stats, **{name: getattr(self._stats, name) + n for name, n in more.items()})

    # The rest runs in the engine's thread.

    def forget(self, adapter: Adapter) -> None:
        if self._ragged:
            self._ragged.forget(adapter)

    @torch.inference_mode()
    def _loop(self) -> None:
        # Ctrl-C is for the main thread: it may be waiting in input(), which only its own signals interrupt.
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        while True:
            try:
                while self._turn():
                    pass
                break
            except BaseException as error:  # not of a request, those are caught: of this file or of the interpreter
                self._rise_again(error)
        self._cancel_all()

    def _turn(self) -> bool:
        """Wait for work and do a step of it; False when the engine is to be closed."""
        with self._changed:
            while not (self._closing or self._calls or self._waiting or self._rows()):
                self._changed.wait()
            if self._closing:
                return False
        self._beat = time.monotonic()
        self._do_calls()
        self._drop_cancelled()
        self._admit()
        self._note()
        if self._ragged and self._ragged.states:
            self._ragged_step(self._ragged)
        if self._prefilling:
            self._prefill(self._prefilling.popleft())
        for batch in self._running:
            self._guarded(batch, self._step)
        self._running = [batch for batch in self._running if batch.states]
        self._note()
        return True

    def _rise_again(self, error: BaseException) -> None:
        """After an error that should not have been: everything that isn't answered begins again, each on its own; what
        has seen it MOST_DEATHS times fails.
        """
        log.exception("the loop of the pt engine died and goes on")
        with self._changed:
            left = [state for state in self._live if not state.stream.ended]
            self._waiting.clear()
            self._prefilling.clear()
            self._running.clear()
            if self._ragged:
                self._ragged.clear()
            death = f"{type(error).__name__}: {error}"
            self._stats = replace(self._stats, restarts=self._stats.restarts + 1, last_death=death)
        for state in left:
            state.deaths += 1
            if state.deaths >= MOST_DEATHS:
                self._fail(state, EngineError(f"the engine died on this request: {death}"))
            state.alone = True
            state.begin_again()
        with self._changed:
            self._waiting.extend(state for state in left if state.deaths < MOST_DEATHS)
        time.sleep(min(1.0, 0.05 * self._stats.restarts))  # an error at every turn must not take a whole core

    def _note(self) -> None:
        """What `stats` tells of rows and memory, which only this thread may look at."""
        with self._changed:
            self._under_way = self._states()
            self._live = [state for state in self._live if not state.stream.ended]
            if self._ragged:
                self._held, self._kept = self._ragged.held, self._ragged.kept

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
        if self._ragged:
            leaving = [state for state in self._ragged.states if state.cancelled]
            self._ragged.drop(leaving)
            gone += leaving
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
        self._ended(state, "cancelled")

    def _cancel_all(self) -> None:
        with self._changed:
            states = [*self._waiting, *self._states()]
            self._waiting.clear()
            if self._ragged:
                self._ragged.clear()
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
        chosen = []
        while len(chosen) < room and self._waiting:
            state = self._waiting[0]
            if self._ragged and self._goes_ragged(state):
                if not self._ragged.has_room(state):
                    break
                self._ragged.add(state)
                room -= 1
            else:
                chosen.append(state)
            with self._changed:
                self._waiting.popleft()
        group: list[GenerationState] = []
        for state in chosen:
            if state.num_beams > 1 or not self._can_step(state):
                self._whole(state)
            elif state.alone or state.inputs is not None or len(state.ids) > self._chunk or not self._model.can_pad:
                self._prefilling.append(Batch(self._model, [state], self._chunk))
            else:
                longest = max(len(s.ids) for s in (*group, state))
                if group and longest * (len(group) + 1) > 4 * self._chunk:
                    self._prefilling.append(Batch(self._model, group, self._chunk))
                    group = []
                group.append(state)
        if group:
            self._prefilling.append(Batch(self._model, group, self._chunk))

    def _goes_ragged(self, state: GenerationState) -> bool:
        return not state.alone and state.inputs is None

    def _ragged_step(self, rows: Rows) -> None:
        with self._changed:
            leaving = rows.make_room()
            for state in leaving:
                state.begin_again()
            self._waiting.extendleft(reversed(leaving))
        try:
            states, logits = rows.step(self._chunk)
        except Exception as error:
            states = rows.states
            rows.clear()
            log.warning("a step of %d requests failed (%s): each is computed on its own", len(states), error)
            self._start_again(states, error)
            return
        staying = {id(states[i]) for i in self._deal(states, logits)}
        rows.drop([state for state in states if id(state) not in staying], keep=True)

    def _can_step(self, state: GenerationState) -> bool:
        return self._model.can_step if state.inputs is None else self._model.can_see

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
            batch.keep(self._deal(batch.states, logits))
        return logits is not None

    def _step(self, batch: Batch) -> bool:
        batch.keep(self._deal(batch.states, batch.step()))
        return True

    def _guarded(self, batch: Batch, work: Callable[[Batch], bool]) -> bool:
        """Do it; if the model fails, the rows start again each on its own, or fail if they were alone already."""
        try:
            return work(batch)
        except Exception as error:
            states, batch.states = batch.states, []
            self._start_again(states, error)
            return False

    def _start_again(self, states: list[GenerationState], error: Exception) -> None:
        """Each on its own; what was alone already has failed."""
        if len(states) == 1 and states[0].alone:
            self._fail(states[0], error)
            return
        for state in states:
            state.alone = True
            state.begin_again()
        with self._changed:
            self._waiting.extendleft(reversed(states))

    def _fail(self, state: GenerationState, error: Exception) -> None:
        state.stream.fail(_explained(error))
        self._ended(state, "failed")

    def _deal(self, states: list[GenerationState], logits: torch.Tensor) -> list[int]:
        """Choose each row's next token and give it to its reader; returns the rows that aren't complete."""
        staying = []
        choices = choose(logits, [state.sampler for state in states])
        for row, (state, choice) in enumerate(zip(states, choices, strict=True)):
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
                self._ended(state, "finished")
            else:
                staying.append(row)
        return staying

    def _whole(self, state: GenerationState) -> None:
        try:
            with self._lock:
                chosen = [(state.adapter, None)] if state.adapter else []
                with self._model.loras.using(chosen):
                    generate_whole(self._model.model, state)
        except Exception as error:
            self._fail(state, error)
            return
        self._ended(state, "finished")


def _tokens(state: GenerationState) -> dict[str, int]:
    return {
        "generated_tokens": state.generated,
        "prompt_tokens": state.prompt_length,
        "cached_tokens": state.cached,
        "prefix_hits": int(state.cached > 0),
    }


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
