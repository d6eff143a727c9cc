"""The proof of a quantization: the written model, read back, beside its source on the same held-out text.

Perplexity is exp of the mean negative log-likelihood of every token but the first of each row. The divergence is the
mean over positions of KL(source || quantized) of the next-token distributions, in nats (Kullback and Leibler 1951).
Figures of a short text: compare the two columns, not one of them with other reports.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from swift.errors import ExportError
from swift.hub.resources import human_bytes
from swift.i18n import display_width, pad
from swift.i18n.said import said

DECODED = 32  # tokens generated to take the speed
MOST_INCREASE = {32: 0.01, 16: 0.01, 8: 0.1, 6: 0.1, 5: 0.3, 4: 0.5}  # of the perplexity; other widths: 1.0


@dataclass(frozen=True)
class Measured:
    """One model. `logits`: [tokens, vocabulary] float16 of each held-out row; `memory`: bytes of its tensors as loaded;
    `speed`: greedily decoded tokens a second, one request, this machine; `disk`: bytes of its weight files.
    """

    perplexity: float
    memory: int
    disk: int
    speed: float
    loaded_as: str
    logits: list[torch.Tensor] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Report:
    """Both sides of the table. `divergence` in nats, `agreement`: share of positions with the same most likely token,
    `quantized_share`: share of the source's weights that became integers or FP8.
    """

    method: str
    bits: int
    kind: str | None  # of GGUF: Q4_0 ...
    group_size: int | None
    quantized_share: float
    held_out: str
    positions: int
    perplexity: float
    source_perplexity: float
    divergence: float
    agreement: float
    disk: int
    source_disk: int
    memory: int
    source_memory: int
    speed: float
    source_speed: float
    loaded_as: str
    source_loaded_as: str
    seconds: float

    @property
    def increase(self) -> float:
        return self.perplexity / self.source_perplexity - 1

    def rows(self) -> list[tuple[str, str, str]]:
        """(what, source, quantized)."""
        return [
            ("weight files", human_bytes(self.source_disk), human_bytes(self.disk)),
            ("in memory", human_bytes(self.source_memory), human_bytes(self.memory)),
            ("loaded as", self.source_loaded_as, self.loaded_as),
            ("perplexity", f"{self.source_perplexity:.3f}", f"{self.perplexity:.3f} ({100 * self.increase:+.2f} %)"),
            ("KL divergence (nats)", "0", f"{self.divergence:.4f}"),
            ("same top token", "100 %", f"{100 * self.agreement:.2f} %"),
            ("tokens/s, one request", f"{self.source_speed:.1f}", f"{self.speed:.1f}"),
        ]

    def name(self) -> str:
        if self.kind:
            return f"{self.method} {self.kind}"
        group = f", groups of {self.group_size}" if self.group_size else ""
        return f"{self.method}, {self.bits} bits{group}"

    def lines(self) -> list[str]:
        """The table for a terminal, in the language of whoever reads."""
        rows = [[said(cell) for cell in row] for row in (("", "source", self.name()), *self.rows())]
        wide, narrow = (max(display_width(row[i]) for row in rows) for i in (0, 1))
        share, became = f"{100 * self.quantized_share:.0f}", self.kind or "quantized"
        head = f"proof on {self.positions} positions ({self.held_out}); {share} % of the weights are {became}:"
        return [said(head), *(f"  {pad(a, wide)}  {pad(b, narrow)}  {c}" for a, b, c in rows)]

    def markdown(self) -> str:
        rows = "".join(f"| {a} | {b} | {c} |\n" for a, b, c in self.rows())
        return f"| | source | {self.name()} |\n|---|---|---|\n{rows}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "perplexity_increase": self.increase}

    def check(self, most: float | None) -> None:
        """ExportError when nothing was quantized, when figures aren't finite, or the perplexity rose by more than
        `most` (a share; None: 10 % with 8 bits, 50 % with 4).
        """
        if self.quantized_share == 0:
            raise ExportError("no weight was quantized", fix="choose another --quant_method")
        most = MOST_INCREASE.get(self.bits, 1.0) if most is None else most
        if not math.isfinite(self.perplexity) or not math.isfinite(self.divergence):
            raise ExportError("the quantized model's answers are not finite", where="perplexity")
        if self.increase > most:
            rise = f"{100 * self.increase:+.1f} %"
            what = f"perplexity rose from {self.source_perplexity:.3f} to {self.perplexity:.3f} ({rise})"
            fix = (
                f"more bits, a smaller --group_size, --quant_search true, or accept it with --max_ppl_increase "
                f"{math.ceil(self.increase * 100) / 100}"
            )
            raise ExportError(f"{what}, {100 * most:.0f} % are allowed", where="--max_ppl_increase", fix=fix)


@torch.inference_mode()
def measure(model, rows: Sequence[Sequence[int]], disk: int) -> Measured:
    """Take the figures of a loaded model on the rows of ids."""
    device = model.get_input_embeddings().weight.device
    total, count, logits = 0.0, 0, []
    for ids in rows:
        inputs = torch.tensor([list(ids)], device=device)
        out = model(input_ids=inputs, use_cache=False).logits[0].float()
        total += torch.nn.functional.cross_entropy(out[:-1], inputs[0, 1:], reduction="sum").item()
        count += len(ids) - 1
        logits.append(out.half().cpu())
    return Measured(
        perplexity=math.exp(min(total / count, 700)),
        memory=tensor_bytes(model),
        disk=disk,
        speed=_speed(model, rows[0], device),
        loaded_as=loaded_as(model),
        logits=logits,
    )


def tensor_bytes(model) -> int:
    """Bytes of all parameters and buffers, each storage once."""
    storages = {}
    for tensor in (part for whole in [*model.parameters(), *model.buffers()] for part in stored_parts(whole)):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def stored_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that a tensor consists of: itself, or the integers and scales of torchao's kinds."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in stored_parts(getattr(tensor, name))]


def loaded_as(model) -> str:
    """The dtype that holds most of the bytes, as `bfloat16`."""
    sizes: dict[str, int] = {}
    for tensor in (part for whole in model.parameters() for part in stored_parts(whole)):
        name = str(tensor.dtype).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0) + tensor.nbytes
    return max(sizes, key=lambda name: sizes[name])


def _speed(model, ids: Sequence[int], device) -> float:
    prompt = torch.tensor([list(ids[:16])], device=device)
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}
    model.generate(prompt, max_new_tokens=2, **settings)
    start = time.perf_counter()
    model.generate(prompt, max_new_tokens=DECODED, min_new_tokens=DECODED, **settings)
    return DECODED / (time.perf_counter() - start)


def divergence(source: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> tuple[float, float]:
    """(mean KL in nats, share of positions with the same most likely token)."""
    total, same, count = 0.0, 0, 0
    for one, two in zip(source, other, strict=True):
        p, q = torch.log_softmax(one.float(), -1), torch.log_softmax(two.float(), -1)
        total += (p.exp() * (p - q)).sum().item()
        same += (one.argmax(-1) == two.argmax(-1)).sum().item()
        count += len(one)
    return total / count, same / count


def weight_file_bytes(directory: Path) -> int:
    files = [*directory.glob("*.safetensors"), *directory.glob("*.gguf"), *directory.glob("*.bin")]
    return sum(file.stat().st_size for file in files)
