"""The fast way to compute many requests with an unmodified transformers model: nothing is padded, and pieces of prompts
ride in the same forward pass as the next tokens of those who are further.

For decoder-only models whose layers keep keys and values (full or sliding attention) and reach their attention through
transformers' interface. Promises: whether a model is one is found by computing with it (`usable`), not by its name;
`Rows` never holds more tokens than `capacity`; what a prompt has in common with an earlier one is not computed again.
Knows nothing of sampling, texts or threads.
"""

from __future__ import annotations

import inspect
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from swift.engines import ragged_attention
from swift.engines.lean import LeanModel, lean_of
from swift.engines.lora import Adapter, Loras, groups
from swift.engines.ragged_attention import NAME, Layers, Piece, Pool, RaggedCache, Steps, Strip
from swift.engines.sampling import scored
from swift.engines.scoring import common_length
from swift.engines.sequence import GenerationState
from swift.hub.resources import available_memory
from swift.models.parts import config_value

log = logging.getLogger("swift")

LEAST_COLUMNS = 128  # of the smallest pool; each further one has twice as many
MOST_KEPT = 64  # beginnings; their tokens are at most a sixteenth of the capacity
LEAST_SHARED = 16  # a common beginning shorter than this is computed again
TOLERANCE = {torch.float32: 1e-3}  # largest difference of a log-probability in the check; HALF_TOLERANCE otherwise
HALF_TOLERANCE = 0.5


def kv_capacity(model: Any, context: int | None) -> int:
    """How many tokens' keys and values the device's free memory has room for; enough for one whole context."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = config_value(config, "head_dim") or config.hidden_size // config.num_attention_heads
    latent = (config_value(config, f"qk_{part}_head_dim") or 0 for part in ("nope", "rope"))
    width = max(width, config_value(config, "global_head_dim") or 0, sum(latent))
    device = model.get_input_embeddings().weight.device
    item = model.dtype.itemsize if device.type != "cpu" else 4
    per_token = 2 * config.num_hidden_layers * heads * width * item
    if device.type == "cuda":
        free = int(0.8 * torch.cuda.mem_get_info(device)[0])
    else:
        free = int(0.4 * (available_memory() or 4 << 30))
    return max(free // per_token, 2 * pool_size(context or LEAST_COLUMNS))


class RaggedModel:
    """`usable` says whether the model gives the same answers this way, `lean` is there where ours is too. `copies`: of
    weights may be made.
    """

    def __init__(self, model: Any, loras: Loras | None = None, copies: bool = False):
        self.model, self._loras, self._copies = model, loras or Loras(model), copies
        self.device = model.get_input_embeddings().weight.device
        self._config = model.config.get_text_config()
        self.windows: list[int | None] = []
        self.lean: LeanModel | None = None
        self.why_not = self._refusal()
        self.why_not_lean = self.why_not or self._get_lean()
        if self.lean is None:
            self.why_not = self.why_not or self._difference()
        self.usable = self.why_not is None

    def _refusal(self) -> str | None:
        accepted = inspect.signature(self.model.forward).parameters
        if not {"position_ids", "past_key_values", "logits_to_keep"} <= accepted.keys():
            return "its forward pass takes no positions, no cache or computes all logits"
        if self._config._attn_implementation not in ("sdpa", "eager"):
            return f"its attention is {self._config._attn_implementation}"
        kinds = set(getattr(self._config, "layer_types", None) or ())
        layers = DynamicCache(config=self.model.config).layers
        if not kinds <= {"full_attention", "sliding_attention"}:
            return f"it has layers of the kind {sorted(kinds)[0]}"
        if not layers or any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
            return "its layers keep more than keys and values"
        self.windows = [x.sliding_window if isinstance(x, DynamicSlidingWindowLayer) else None for x in layers]
        return None

    def _get_lean(self) -> str | None:
        found = lean_of(self.model, self._loras, self.windows, self._copies)
        if isinstance(found, str):
            return found
        try:
            different = found.difference(self.model)
        except Exception as error:  # whatever a strange model does with what it is given
            return f"{type(error).__name__}: {error}"
        if different is None:
            self.lean = found
            different = self._difference()
        if different is not None:
            self.lean = None
        return different

    @torch.inference_mode()
    def _difference(self) -> str | None:
        """Compare prompts of different lengths, in pieces and with a further token, with plain forward passes."""
        words = self.model.get_input_embeddings().weight.shape[0]
        prompts = [[(7 * i * i + 3 * i + k) % words for i in range(n)] for k, n in enumerate((4, 11, 7))]
        try:
            rows = Rows(self, capacity=1 << 30)
            for prompt in prompts:
                rows.add(_Probe(prompt))
            got: dict[int, torch.Tensor] = {}
            for chunk in (9, 64, 64):
                states, logits = rows.step(chunk)
                for state, line in zip(states, logits, strict=True):
                    got[id(state)] = line
                    state.ids.append(5)
            plain = {id(r.state): self._plain(r.state.ids[:-1]) for r in rows.all()}
        except Exception as error:  # whatever a strange model does with what it is given
            return f"{type(error).__name__}: {error}"
        worst = max(float((_logprobs(got[i]) - _logprobs(plain[i])).abs().max()) for i in plain)
        if not worst <= TOLERANCE.get(self.model.dtype, HALF_TOLERANCE):
            return f"its answers differ from a plain pass's by {worst:.2g} nats"
        return None

    def _plain(self, ids: Sequence[int]) -> torch.Tensor:
        return self.model(input_ids=torch.tensor([ids], dtype=torch.long, device=self.device), use_cache=False).logits[
            0, -1
        ]

    def logits(
        self,
        ids: list[int],
        positions: list[int],
        wanted: list[int],
        cache: RaggedCache,
        adapters: Sequence[Adapter | None] = (),
    ) -> torch.Tensor:
        """Of the tokens at the places `wanted`: [places, vocabulary]. `adapters`: one for each token, or none."""
        if self.lean is not None:
            with self._loras.using(groups(adapters, self.device)):
                return self.lean.logits(ids, positions, wanted, cache)
        own = self._config._attn_implementation_internal
        self._config._attn_implementation_internal = NAME
        ragged_attention.now.cache = cache
        try:
            with self._loras.using(groups(adapters, self.device)):
                return self._forward(ids, positions, wanted, cache)
        finally:
            self._config._attn_implementation_internal = own
            del ragged_attention.now.cache

    def _forward(self, ids: list[int], positions: list[int], wanted: list[int], cache: RaggedCache) -> torch.Tensor:
        return self.model(
            input_ids=torch.tensor([ids], dtype=torch.long, device=self.device),
            position_ids=torch.tensor([positions], dtype=torch.long, device=self.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.tensor(wanted, dtype=torch.long, device=self.device),
            return_dict=True,
        ).logits[0]


def _logprobs(logits: torch.Tensor) -> torch.Tensor:
    """Of the 20 likeliest tokens, where a difference means something, sorted."""
    return logits.float().log_softmax(-1).topk(min(20, logits.shape[-1])).values


class _Probe:
    """A request of the check."""

    prompt_logprobs = adapter = None

    def __init__(self, ids: list[int]):
        self.ids, self.prompt_length, self.cached = list(ids), len(ids), 0


class Row:
    """`strip` holds the keys and values of its prompt until that is computed; then it is a member of `pool`."""

    def __init__(self, state: GenerationState):
        self.state = state
        self.strip: Strip | None = None
        self.pool: Pool | None = None
        self.done = 0  # tokens whose keys and values are there
        self.dtype = torch.float32  # of its keys and values as the model makes them

    @property
    def columns(self) -> int:
        return self.pool.columns if self.pool else len(self.state.ids)


class Rows:
    """The requests under way. `capacity` in tokens bounds what all rows and kept beginnings may hold."""

    def __init__(self, model: RaggedModel, capacity: int):
        self._model, self.capacity, self.most_kept = model, capacity, capacity // 16
        self._pools: dict[int, Pool] = {}
        self._members: dict[int, list[Row]] = {}
        self._filling: list[Row] = []
        self._kept = Beginnings()

    def all(self) -> Iterator[Row]:
        """In no particular order."""
        yield from self._filling
        for members in self._members.values():
            yield from members

    @property
    def states(self) -> list[GenerationState]:
        return [row.state for row in self.all()]

    @property
    def held(self) -> int:
        """Tokens that the rows have room for; those of kept beginnings aren't counted, they make way."""
        return sum(row.columns for row in self.all())

    @property
    def kept(self) -> int:
        """Tokens of beginnings that are kept."""
        return self._kept.tokens

    def has_room(self, state: GenerationState) -> bool:
        """Whether it can begin: always, where it would be alone."""
        held = self.held
        return not held or held + pool_size(len(state.ids) + 1) <= self.capacity

    def add(self, state: GenerationState) -> None:
        self._filling.append(Row(state))

    def drop(self, gone: Sequence[GenerationState], keep: bool = False) -> None:
        """Rows that leave; `keep` their keys and values for those who begin alike."""
        wanted = {id(state) for state in gone}
        for row in self._filling:
            if keep and id(row.state) in wanted and row.strip and row.strip.done:
                self._kept.put(row.state, row.strip)
        self._filling = [row for row in self._filling if id(row.state) not in wanted]
        for columns, members in self._members.items():
            for at in reversed(range(len(members))):
                row = members[at]
                if id(row.state) in wanted:
                    if keep:
                        strip = Strip(row.done)
                        for layer, (keys, values) in self._pools[columns].row(at).items():
                            both = (states[:, : row.done].to(row.dtype) for states in (keys, values))
                            strip.write(layer, 0, *both)
                        strip.done = row.done
                        self._kept.put(row.state, strip)
                    self._pools[columns].remove(at)
                    members[at] = members[-1]
                    members.pop()
        self._kept.shrink(min(self.capacity - self.held, self.most_kept))

    def clear(self) -> None:
        self._pools, self._members, self._filling, self._kept = {}, {}, [], Beginnings()

    def forget(self, adapter: Adapter) -> None:
        """Drop what was kept for the prompts of an adapter that has gone."""
        self._kept.forget(adapter)

    def make_room(self) -> list[GenerationState]:
        """Rows that have to leave and begin again later because those before them grow: the newest first."""
        leaving = []
        while len(rows := list(self.all())) > 1 and self.held + sum(_growth(row) for row in rows) > self.capacity:
            newest = min(rows, key=lambda row: row.done - row.state.prompt_length if row.pool else -1)
            leaving.append(newest.state)
            self.drop([newest.state])
        return leaving

    def step(self, chunk: int) -> tuple[list[GenerationState], torch.Tensor]:
        """One forward pass with at most `chunk` tokens of prompts: the rows whose next token can be chosen now, with
        their logits [rows, vocabulary].
        """
        self._settle()
        ids, positions, wanted, ready, adapters = [], [], [], [], []
        steps, pieces = [], []
        for columns, members in self._members.items():
            if members:
                places = [row.done for row in members]
                at = torch.tensor(places, device=self._model.device)
                steps.append(Steps(self._pools[columns], len(ids), at, min(places), max(places)))
                ids += [row.state.ids[-1] for row in members]
                positions += places
                ready += members
                adapters += [row.state.adapter for row in members]
        wanted += range(len(ids))
        scoring: list[tuple[Row, Piece]] = []
        for row, count in self._shares(chunk):
            assert row.strip is not None
            piece = Piece(row.strip, len(ids), row.done, count)
            pieces.append(piece)
            ids += row.state.ids[row.done : row.done + count]
            positions += range(row.done, row.done + count)
            adapters += [row.state.adapter] * count
            if row.state.prompt_logprobs is not None:
                scoring.append((row, piece))
                wanted += range(piece.begin, piece.begin + count)
            elif row.done + count == len(row.state.ids):
                wanted.append(len(ids) - 1)
            if row.done + count == len(row.state.ids):
                ready.append(row)
        cache = RaggedCache(steps, pieces, self._model.windows)
        logits = self._model.logits(ids, positions, wanted, cache, adapters if any(adapters) else ())
        found = {place: at for at, place in enumerate(wanted)}
        for row, piece in scoring:
            _score(row.state, logits[found[piece.begin] :][: piece.count], piece.start)
        lasts = [found[part.begin + i] for part in steps for i in range(part.pool.rows)]
        for piece in pieces:
            piece.strip.done = piece.start + piece.count
            if (last := piece.begin + piece.count - 1) in found and piece.strip.done == piece.strip.columns:
                lasts.append(found[last])
        for members in self._members.values():
            for row in members:
                row.done += 1
        for row in self._filling:
            row.done = row.strip.done if row.strip else 0
        return [row.state for row in ready], logits[lasts] if len(lasts) < len(wanted) else logits

    def _settle(self) -> None:
        """Rows whose prompt is computed, and rows that have outgrown their pool, go to the pool of their size."""
        arrived = [row for row in self._filling if row.strip and row.done == row.strip.columns]
        self._filling = [row for row in self._filling if not (row.strip and row.done == row.strip.columns)]
        for row in arrived:
            assert row.strip is not None
            row.dtype = next(iter(row.strip.layers.values()))[0].dtype
            self._enter(row, row.strip.layers)
            self._kept.put(row.state, row.strip)
            row.strip = None
        for columns, members in list(self._members.items()):
            for at in reversed(range(len(members))):
                if members[at].done == columns:
                    row = members[at]
                    self._enter(row, self._pools[columns].row(at))
                    self._pools[columns].remove(at)
                    members[at] = members[-1]
                    members.pop()
        self._kept.shrink(min(self.capacity - self.held, self.most_kept))

    def _enter(self, row: Row, layers: Layers) -> None:
        columns = pool_size(row.done + 1)
        pool = self._pools.setdefault(columns, Pool(columns))
        pool.insert(layers, row.done)
        self._members.setdefault(columns, []).append(row)
        row.pool = pool

    def _shares(self, chunk: int) -> list[tuple[Row, int]]:
        """(row, tokens) of prompts to compute now: half of the chunk for the oldest, the rest for the shortest ones, so
        that a long prompt neither holds up the others nor is held up by them. A row that begins like another one that
        is being computed waits for it.
        """
        shares: list[tuple[Row, int]] = []
        left = chunk
        oldest = self._filling[:1]
        shortest = sorted(self._filling[1:], key=lambda row: len(row.state.ids) - row.done)
        for row in oldest + shortest:
            if left <= 0:
                break
            if row.strip is None and not self._begin(row):
                continue
            most = max(1, chunk // 2) if row in oldest and shortest else left
            count = min(left, most, len(row.state.ids) - row.done)
            shares.append((row, count))
            left -= count
        if left > 0 and shares and oldest:  # what the shortest leave is the oldest's
            row, count = shares[0]
            shares[0] = (row, count + min(left, len(row.state.ids) - row.done - count))
        return shares

    def _begin(self, row: Row) -> bool:
        """Give the row its strip, with what others have computed of its beginning; False: wait for one that will."""
        ids, most = row.state.ids, len(row.state.ids) - 1
        row.strip = Strip(len(ids))
        if row.state.prompt_logprobs is not None:
            return True
        strip, shared = self._kept.find(row.state)
        for other in self._filling:
            if other is not row and other.strip is not None and other.state.adapter is row.state.adapter:
                common = min(common_length(ids, other.state.ids), most)
                if common >= shared + LEAST_SHARED:
                    if other.strip.done < common:
                        row.strip = None
                        return False
                    strip, shared = other.strip, common
        shared = min(shared, most)
        if strip is not None and shared >= LEAST_SHARED:
            row.strip.take(strip, shared)
            row.done = shared
            row.state.cached = max(row.state.cached, min(shared, row.state.prompt_length))
        return True


class Beginnings:
    """Keys and values of computed tokens, for prompts of the same adapter that begin alike. The least recently used go
    first.
    """

    def __init__(self) -> None:
        self._strips: OrderedDict[tuple[Any, ...], Strip] = OrderedDict()  # by adapter and ids, one after the other

    def put(self, state: GenerationState, strip: Strip) -> None:
        if strip.done < LEAST_SHARED:
            return
        key = (state.adapter, *state.ids[: strip.done])
        for other in [k for k in self._strips if len(k) <= len(key) and k == key[: len(k)]]:
            del self._strips[other]
        self._strips[key] = strip

    def find(self, state: GenerationState) -> tuple[Strip | None, int]:
        """The strip that has the longest common beginning with this request, and its length."""
        wanted = (state.adapter, *state.ids)
        best, length = None, 0
        for key in self._strips:
            common = common_length(key, wanted) - 1
            if common > length:
                best, length = key, common
        if best is None:
            return None, 0
        self._strips.move_to_end(best)
        return self._strips[best], length

    def forget(self, adapter: Adapter) -> None:
        for key in [key for key in self._strips if key[0] is adapter]:
            del self._strips[key]

    @property
    def tokens(self) -> int:
        return sum(strip.done for strip in self._strips.values())

    def shrink(self, tokens: int) -> None:
        held = self.tokens
        while held > max(tokens, 0) or len(self._strips) > MOST_KEPT:
            _, strip = self._strips.popitem(last=False)
            held -= strip.done


def pool_size(columns: int) -> int:
    size = LEAST_COLUMNS
    while size < columns:
        size *= 2
    return size


def _growth(row: Row) -> int:
    """How much more the row will hold after it has found its pool for the next step."""
    return pool_size(row.done + 1) - row.columns if row.pool or row.done == len(row.state.ids) else 0


def _score(state: GenerationState, logits: torch.Tensor, start: int) -> None:
    """Note what the model thinks of a piece of a prompt. logits: [tokens, vocabulary]."""
    wanted = state.ids[start + 1 : min(start + 1 + logits.shape[0], state.prompt_length)]
    if wanted:
        state.prompt_scores += scored(logits[: len(wanted)], wanted, state.prompt_logprobs or 0)
