"""The fast path of one run: which of its parts are on, and the loss of a batch through them.

Promises: `FastPath.loss` returns what the trainer's plain forward does: the batch's share of the step's mean loss and
the counts. With no part left the trainer's own forward runs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from swift.train.lean import kernels, segments
from swift.train.lean import model as shapes
from swift.train.lean.fuse import Fused
from swift.train.lean.head import Head
from swift.train.lean.segments import Flat
from swift.train.losses import IGNORED, LossParts

log = logging.getLogger("swift")


class Compiling(NamedTuple):
    """How torch.compile works; None is its own choice."""

    backend: str | None = None
    mode: str | None = None


class FastPath:
    """`padding_free`: rows stand one behind the other. `lean_head`: the head works on label positions, in chunks; it
    needs the first. `fused_layers`: norms, gated MLPs and LoRA projections are fused, `light` without keeping gate and
    up. `compiling`: --torch_compile with its backend and mode; the elementwise chains of fused layers, or each decoder
    layer where layers aren't fused, become code of their own.

    Parts that the model doesn't fit are left out at once, with a line that says why.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        padding_free: bool = True,
        lean_head: bool = True,
        fused_layers: bool = False,
        light: bool = False,
        compiling: Compiling | None = None,
    ):
        self.model, self.base = model, shapes.base_of(model)
        self.before: str | None = None  # the attention before ours
        self.engaged = False
        self.padding_free, self.lean_head = padding_free, lean_head and padding_free
        self.fused_layers = fused_layers
        self.torch_compile, self.compiling = compiling is not None, compiling or Compiling()
        self._compiled: list[nn.Module] = []
        self.fused = Fused(self.base, light)
        self._head: Head | None = None
        self._fit()

    def _fit(self) -> None:
        why = shapes.refusal(self.base)
        if why is not None:
            self.refuse(why)
        why = shapes.joining_refusal(self.base) if self.padding_free else None
        if why is not None:
            log.info("batches are padded and logits whole: %s", why)
            self.padding_free = self.lean_head = False
        if self.lean_head:
            head = shapes.head_of(self.base)
            routed = getattr(self.base.config.get_text_config(), "output_router_logits", False)
            if routed and shapes.router_loss_of(self.base) is None:
                head = "its routers' loss is computed in a way of its own"
            if isinstance(head, str):
                log.info("logits are computed whole: %s", head)
                self.lean_head = False
            else:
                self._head = head

    @property
    def sees(self) -> bool:
        """Whether the model takes more than text."""
        return self.base.config.get_text_config() is not self.base.config

    @property
    def joins(self) -> bool:
        """Whether batches go through `loss`."""
        return self.padding_free and self.engaged

    def parts(self) -> list[str]:
        """What is on; a part stands before those that it needs."""
        return [name for name in ("torch_compile", "fused_layers", "lean_head", "padding_free") if getattr(self, name)]

    def engage(self) -> None:
        """Put the parts into the model."""
        self.engaged = True
        text = shapes.text_of(self.base)
        if self.padding_free and text.config._attn_implementation not in (segments.NAME, *segments.FLASH):
            segments.register(opaque=self.torch_compile and not self.fused_layers)
            self.before = text.config._attn_implementation
            text.set_attn_implementation(segments.NAME)
        if self.lean_head:
            shapes.install(self.base, self._head)
        if self.fused_layers:
            self.fused.engage()
        if self.torch_compile and self.fused_layers:
            kernels.compiled(*self.compiling)
        elif self.torch_compile:
            self._compiled = kernels.compile_layers(self.base, *self.compiling)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The plain path for a while."""
        self._leave()
        self.fused.rest()
        try:
            yield
        finally:
            self.engage()

    def release(self) -> None:
        """Take them out again; the model is as transformers and peft made it."""
        self._leave()
        self.fused.release()

    def _leave(self) -> None:
        self.engaged = False
        shapes.uninstall(self.base)
        kernels.plain()
        for layer in self._compiled:
            layer._compiled_call_impl = None
        self._compiled = []
        if self.before is not None:
            shapes.text_of(self.base).set_attn_implementation(self.before)
            self.before = None

    def refuse(self, why: str) -> None:
        """No part is used in this run."""
        log.info("the plain path trains this model: %s", why)
        self.release()
        self.padding_free = self.lean_head = False
        self._unfused(why)

    def without(self, part: str) -> None:
        """Leave a part out from now on; without joined rows there is no other part either."""
        self.release()
        setattr(self, part, False)
        if part == "fused_layers":
            self._unfused("layers aren't fused")
        if not self.padding_free:
            self.lean_head = False
        self.engage()

    def _unfused(self, why: str) -> None:
        """Without fused layers their chains aren't compiled, and nothing else is in their place unasked."""
        if self.torch_compile:
            log.warning("--torch_compile is off: %s", why)
        self.fused_layers = self.torch_compile = False

    # ---- a batch ----

    def label_count(self, batch: dict[str, Any]) -> torch.Tensor:
        """Label tokens of a padded batch: int64 scalar."""
        labels = batch["labels"]
        return ((labels != IGNORED) & ~segments.first_tokens(batch["attention_mask"])).sum()

    def loss(
        self, model: nn.Module, inputs: dict[str, Any], tokens: torch.Tensor, smoothing: float, router: float = 0.0
    ) -> tuple[torch.Tensor, LossParts]:
        """`inputs` is a padded batch, `model` the model in whatever wrapping; `router` weighs the routers' loss."""
        flat = segments.flatten(inputs)
        implementation = shapes.text_of(self.base).config._attn_implementation
        arguments = segments.attention_arguments(flat.segments, implementation, flat.input_ids.device)
        places = shapes.positions_of(self.base, inputs) if flat.more else None
        if places is not None:
            places = places[:, inputs["attention_mask"] != 0][:, None]
        arguments |= {"input_ids": flat.input_ids, "use_cache": False, **flat.more}
        arguments["position_ids"] = flat.position_ids if places is None else places
        outputs, parts = self._run(model, arguments, flat, smoothing)
        loss = parts.total / tokens
        if outputs.get("aux_loss") is not None:
            loss = loss + router * outputs["aux_loss"].to(loss.device) * (parts.tokens / tokens)
        return loss, parts

    def _run(self, model: nn.Module, arguments: dict[str, Any], flat: Flat, smoothing: float) -> tuple[Any, LossParts]:
        following = flat.labels[0, 1:]
        positions = (following != IGNORED).nonzero().squeeze(1)
        targets = following[positions]
        weights = None if flat.loss_scale is None else flat.loss_scale[0, 1:][positions]
        if self.lean_head:
            if getattr(self.base.config.get_text_config(), "output_router_logits", False):
                arguments["output_router_logits"] = True
            lean = {"positions": positions, "targets": targets, "weights": weights, "smoothing": smoothing}
            outputs = model(**arguments, lean=lean)
            return outputs, _counts(outputs["total"], outputs["hits"], positions, flat)
        outputs = model(**arguments)
        chosen = outputs.logits[0].index_select(0, positions).float()
        losses = nn.functional.cross_entropy(chosen, targets, reduction="none", label_smoothing=smoothing)
        total = (losses if weights is None else losses * weights).sum()
        return outputs, _counts(total, chosen.detach().argmax(-1) == targets, positions, flat)


def _counts(total: torch.Tensor, hits: torch.Tensor, positions: torch.Tensor, flat: Flat) -> LossParts:
    device = positions.device
    count = len(flat.segments.sizes)
    rows = torch.arange(count, device=device).repeat_interleave(torch.tensor(flat.segments.sizes, device=device))
    rows = rows[positions]
    labelled = torch.zeros(count, dtype=torch.int64, device=device).index_add_(0, rows, torch.ones_like(rows))
    wrong = torch.zeros(count, dtype=torch.int64, device=device).index_add_(0, rows, (~hits).long())
    right_rows = ((labelled > 0) & (wrong == 0)).sum()
    tokens = torch.tensor(len(positions), device=device)
    return LossParts(total, tokens, hits.sum(), (labelled > 0).sum(), right_rows)
