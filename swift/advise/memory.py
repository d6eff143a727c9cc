"""Memory of training, inference and serving, by part, from a model's shape: no weights, no torch, microseconds.

Promises: `estimate` gives the peak of one optimizer step on one device, in bytes, as the largest of the moments at
which a step can peak (the loss, the backward pass of a layer, the end of the backward pass). It is compared with
measured peaks in benchmarks/plan_accuracy.py. Knows nothing of fragmentation beyond a flat share on accelerators, nor
of torch.compile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from swift.advise.activations import (
    ITEM,
    WIDE,
    Regime,
    expert_copies,
    fused_saved_per_token,
    largest_transient,
    saved_per_token,
)
from swift.advise.layers import Layer, Linear, Shape
from swift.advise.shape import shape_of
from swift.advise.spread import Spread

# The process before any model: Python, torch, transformers and, for training, peft and the trainer on the CPU, beside
# what quantizes while loading and what processors of media bring; the driver's context, kernels and cuBLAS workspaces
# on a GPU.
CPU_FRAMEWORK, CPU_TRAINING, CPU_QUANTIZING = 410_000_000, 445_000_000, 45_000_000
CPU_MEDIA = 170_000_000
GPU_CONTEXT = 600_000_000
GPU_SLACK = 0.05  # of activations: blocks that torch's allocator can't reuse
# On the CPU glibc keeps freed blocks below 32 MiB, and aligned ones it can hardly reuse: shares, measured with glibc
# 2.36, of what all layers save (checkpointed or not) that come on top with LoRA, fused and plain, and with full
# training
HEAP_BLOCK = 32 << 20
HEAP_FUSED, HEAP_LORA, HEAP_FULL = 0.4, 0.75, 0.35
# What one label position's logits cost in the loss, per vocabulary entry: log-probabilities and two gradients, float32
LOSS_BYTES = 12
LEAN_CHUNK = 32 << 20  # bytes of float32 logits that the lean head has at once
# bytes of state per trained parameter of `size` bytes; optimizers not named keep two values of the parameter's size
OPTIMIZER_STATE: dict[str, tuple[float, float]] = {  # name -> (values of the parameter's size, bytes on top)
    "sgd": (0, 0),
    "rmsprop": (1, 0),
    "adagrad": (1, 0),
    "adafactor": (0.01, 0),
    "lion": (1, 0),
    "lion_32bit": (1, 0),
    "lion_8bit": (0, 1),
    "adamw_8bit": (0, 2),
    "adamw_bnb_8bit": (0, 2),
    "ademamix_8bit": (0, 3),
    "paged_adamw": (0, 0),
    "paged_adamw_32bit": (0, 0),
    "paged_adamw_8bit": (0, 0),
    "paged_lion_32bit": (0, 0),
    "paged_lion_8bit": (0, 0),
}
NF4_BYTES, NF4_DOUBLE_BYTES = 0.5 + 4 / 64, 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Training:
    """Options of one training step, as plain values; `label_share`: share of the tokens that the loss sees.
    `lean_head`: logits exist in chunks only, and their gradient is taken on the way.

    `weight_bits`: 8 or 4 quantized on load, 0 for plain weights of `dtype`. `rows_differ`: rows of a batch differ in
    length, so there is padding and an attention mask. `longest`: tokens of the longest rows, the longest first, where
    all rows are known and stand one behind the other: a pass holds no more than those. `spread`: what each of the
    data-parallel processes holds.
    `fused`: LoRA layers are fused, `light` their MLPs' insides computed again.
    `glibc`: memory comes from the C library's own allocator (CPU). `device`: cpu, cuda, npu, xpu, mps.
    """

    dtype: str = "bfloat16"
    batch: int = 1
    length: int = 2048
    accumulation: int = 1
    full: bool = False
    rank: int = 8
    targets: tuple[str, ...] = ("all-linear",)
    modules_to_save: tuple[str, ...] = ()
    dropout: float = 0.05
    dora: bool = False
    adapter_dtype: str = "float32"
    trainable_share: float = 1.0
    mixed: bool = True
    checkpointing: bool = True
    fused: bool = False
    light: bool = False
    optimizer: str = "adamw_torch_fused"
    weight_bits: int = 0
    double_quant: bool = True
    attention: str = "sdpa"
    lean_head: bool = False
    label_share: float = 1.0
    rows_differ: bool = True
    longest: tuple[int, ...] = ()
    spread: Spread = Spread()
    device: str = "cuda"
    glibc: bool = False

    @property
    def tokens(self) -> int:
        """Of the largest pass."""
        if self.longest:
            return sum(min(count, self.length) for count in self.longest[: self.batch])
        return self.batch * self.length

    @property
    def fuses(self) -> bool:
        """Whether LoRA layers are fused and keep no more than their inputs: not with DoRA, which keeps results too."""
        return self.fused and not (self.full or self.dora)


@dataclass(frozen=True)
class Estimate:
    """`parts`: bytes by name, in the order to show them; their sum is the peak. `trainable`: parameters that train."""

    parts: Mapping[str, int]
    trainable: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def above_framework(self) -> int:
        """Without the process's own floor: what allocations of the model and its training come to."""
        return self.total - self.parts["framework"]


def estimate(
    config: Mapping[str, Any] | Shape,
    training: Training,
    *,
    parameters: int | None = None,
    stored_bytes: int | None = None,
) -> Estimate:
    """The peak memory of training the model of config.json (a dict) like this.

    `parameters`: counted in the weight files, when they are there; `stored_bytes`: size of weights that stay
    quantized as the checkpoint has them. ModelFileError when the config doesn't say how large the model is.
    """
    shape = config if isinstance(config, Shape) else shape_of(config, parameters)
    item = ITEM[training.dtype]
    targets = adapted_names(shape, training.targets)
    has_expert_targets = any(x.expert and x.name in targets for layer in shape.layers for x in layer.linears)
    regime = Regime(
        item=item,
        mixed=training.mixed and item < WIDE,
        full=training.full,
        adapter_item=ITEM[training.adapter_dtype],
        rank=training.rank,
        targets=frozenset() if training.full else targets,
        # peft has no dropout for tensors of fused experts, so there is none at all then
        dropout=training.dropout > 0 and not training.full and not has_expert_targets,
        mask=0 if training.device == "cpu" else 1,
        eager=training.attention == "eager",
        alone=training.batch == 1,
        fused_dropout=training.device not in ("cpu", "mps"),
        padded=training.rows_differ and training.batch > 1 and not training.attention.startswith("flash"),
    )
    adapters, copies = _adapters(shape, training, targets)
    trainable = int(shape.parameters * training.trainable_share) if training.full else adapters + copies
    spread = training.spread
    train_item = item if training.full else ITEM[training.adapter_dtype]
    # FSDP2 keeps what trains in float32 under autocast
    upcast = spread.engine == "fsdp" and regime.mixed and training.full
    train_item = WIDE if upcast else train_item
    gradients = trainable * train_item
    values, extra = OPTIMIZER_STATE.get(training.optimizer, (2, 0))
    activations, logits, held = _dynamic(shape, training, regime, spread.gradients(gradients))
    weights = weight_bytes(shape, training.dtype, training.weight_bits, training.double_quant, stored_bytes)
    slack = GPU_SLACK if training.device in ("cuda", "npu", "xpu") else 0.0
    parts = {
        "weights": spread.weights(weights + upcast * trainable * (WIDE - item), _gathered(shape, item)),
        "adapters": 0 if training.full else _adapter_bytes(trainable, copies, train_item, item, training),
        "gradients": held + spread.buckets(gradients, train_item),
        "optimizer": spread.optimizer(trainable, values, train_item, extra),
        "activations": int(activations * (1 + slack)),
        "logits": int(logits * (1 + slack)),
        "allocator": int(_kept_by_heap(shape, training, regime)),
        "framework": framework_bytes(
            training.device, training=True, quantizing=training.weight_bits > 0, media=shape.tower > 0
        ),
    }
    return Estimate(parts, trainable)


def _gathered(shape: Shape, item: int) -> int:
    """Weights that are whole at the same time where processes hold parts: two layers, embedding and output layer."""
    return item * (2 * max((x.parameters for x in shape.layers), default=0) + shape.embedding + shape.head)


def _adapter_bytes(trainable: int, copies: int, train_item: int, item: int, training: Training) -> int:
    """Adapters, and B once more beside the weights that a fused layer multiplies together with it: about half."""
    again = (trainable - copies) * item // 2 if training.fuses else 0
    return trainable * train_item // training.spread.parts_of_weights + again


def framework_bytes(device: str, training: bool = False, quantizing: bool = False, media: bool = False) -> int:
    if device not in ("cpu", "mps"):
        return GPU_CONTEXT
    return (CPU_TRAINING if training else CPU_FRAMEWORK) + CPU_QUANTIZING * quantizing + CPU_MEDIA * media


def weight_bytes(
    shape: Shape, dtype: str, bits: int = 0, double_quant: bool = True, stored_bytes: int | None = None
) -> int:
    """Weights in memory. Quantizing while loading leaves embeddings, output layer, norms and routers in `dtype`."""
    if stored_bytes is not None and not bits:
        return stored_bytes
    item = ITEM[dtype]
    if not bits:
        return shape.parameters * item
    each = 1.0 if bits == 8 else NF4_DOUBLE_BYTES if double_quant else NF4_BYTES
    linears = [x for layer in shape.layers for x in layer.linears if not x.router]
    linear = sum(x.count * x.inputs * x.outputs for x in linears)
    return int(linear * each) + (shape.parameters - linear) * item


def adapted_names(shape: Shape, targets: tuple[str, ...]) -> frozenset[str]:
    """Names of the linear layers that LoRA reaches: `all-linear` is all but the routers (and the output layer)."""
    linears = {x.name: x for layer in shape.layers for x in layer.linears}
    found: set[str] = set()
    for word in targets:
        leaf = word.rpartition(".")[2]
        if word == "all-linear":
            found |= {name for name, x in linears.items() if not x.router}
        elif word == "all-router":
            found |= {name for name, x in linears.items() if x.router}
        elif word == "all-experts":
            found |= {name for name, x in linears.items() if x.expert}
        elif leaf in linears:
            found.add(leaf)
    return frozenset(found)


def _adapters(shape: Shape, training: Training, targets: frozenset[str]) -> tuple[int, int]:
    """(parameters of the LoRA matrices, parameters of modules that train whole as copies)."""
    lora = 0
    for layer in shape.layers:
        adapted = [x for x in layer.linears if x.name in targets]
        lora += sum(
            x.count * training.rank * (x.inputs + x.outputs) + training.dora * x.outputs for x in _fused(adapted)
        )
    whole = sum(
        shape.embedding
        for name in training.modules_to_save
        if name.rpartition(".")[2] in ("embed_tokens", "lm_head", "wte")
    )
    return lora, whole


def _fused(linears: list[Linear]) -> list[Linear]:
    """Experts' gate and up projections are one tensor in transformers, so they share one pair of LoRA matrices."""
    gates = [x for x in linears if x.expert and x.name == "gate_proj"]
    if not gates:
        return linears
    rest = [x for x in linears if not (x.expert and x.name in ("gate_proj", "up_proj"))]
    return [*rest, replace(gates[0], outputs=2 * gates[0].outputs)]


def _dynamic(shape: Shape, training: Training, regime: Regime, gradients: int) -> tuple[float, float, int]:
    """(activations, logits, gradients held) in bytes at the moment of the step at which their sum is largest."""
    tokens = training.tokens
    item, hidden = regime.item, shape.hidden
    per_layer = [tokens * _saved(x, hidden, regime, training) + expert_copies(x, regime) for x in shape.layers]
    end = tokens * hidden * (WIDE + item * regime.full + item)  # final norm, input of the output layer
    if training.checkpointing:
        kept = tokens * hidden * item * len(shape.layers)
        at_work = max(
            (
                saved + _working(x, tokens, training.length, shape, regime)
                for x, saved in zip(shape.layers, per_layer, strict=True)
            ),
            default=0,
        )
    else:
        kept = sum(per_layer)
        at_work = max((_working(x, tokens, training.length, shape, regime) for x in shape.layers), default=0)
    earlier = gradients if training.accumulation > 1 else 0
    # a tied embedding has two gradients, from both of its ends, and then their sum; with the lean head all at once
    last = (2 + training.lean_head) * shape.embedding * item if regime.full and shape.tied else 0
    if training.lean_head:
        logits, ahead = _lean_logits(shape, training, regime, tokens * training.label_share)
    else:
        logits, ahead = tokens * training.label_share * shape.vocab * (LOSS_BYTES + item * shape.final_softcap), 0.0
    moments = [
        (kept + end, logits + ahead, earlier),
        (kept + at_work, ahead, earlier),
        ((at_work if training.checkpointing else 0) + last, 0.0, gradients),
    ]
    return max(moments, key=sum)


def _lean_logits(shape: Shape, training: Training, regime: Regime, labels: float) -> tuple[float, float]:
    """(a chunk of logits at work, gradients that are there before the backward pass: of the head and its input)."""
    item = regime.item
    chunk = min(LEAN_CHUNK, labels * shape.vocab * WIDE)
    copies = 1 + shape.final_softcap + (2 * item / WIDE if item < WIDE else 0)
    head = shape.embedding * WIDE if training.full else 0
    return chunk * copies, labels * shape.hidden * item + head


def _saved(layer: Layer, hidden: int, regime: Regime, training: Training) -> float:
    """Bytes per token that one layer keeps."""
    fused = _saved_fused(layer, hidden, regime, training)
    return saved_per_token(layer, hidden, regime, training.length) if fused is None else fused


def _saved_fused(layer: Layer, hidden: int, regime: Regime, training: Training) -> float | None:
    """The same where the layer is fused, else None."""
    return fused_saved_per_token(layer, hidden, regime, training.light) if training.fuses else None


def _kept_by_heap(shape: Shape, training: Training, regime: Regime) -> float:
    """Freed blocks that the C library keeps; large ones go back to the system at once."""
    if not training.glibc or training.device != "cpu":
        return 0.0
    tokens = training.tokens
    total = 0.0
    for layer in shape.layers:
        inner = max(layer.inner, layer.expert_inner * layer.top_k)
        if tokens * shape.hidden * regime.item >= HEAP_BLOCK:
            continue
        saved = saved_per_token(layer, shape.hidden, regime, training.length)
        if tokens * inner * regime.item >= HEAP_BLOCK:
            saved -= 3 * inner * regime.item
        lora = HEAP_LORA if _saved_fused(layer, shape.hidden, regime, training) is None else HEAP_FUSED
        total += tokens * max(0.0, saved) * (HEAP_FULL if training.full else lora)
    return total


def _working(layer: Layer, tokens: int, length: int, shape: Shape, regime: Regime) -> float:
    """What the backward pass of one layer needs beside what was saved: gradients of activations, dequantized
    weights.
    """
    return tokens * largest_transient(layer, shape.hidden, regime, length) + 2 * expert_copies(layer, regime)


def cache_bytes(shape: Shape, dtype: str, rows: int, length: int) -> int:
    """Keys and values of `rows` sequences of `length` tokens; windows bound theirs, MLA stores its latent."""
    item = ITEM[dtype]
    total = sum(x.cached * min(length, x.window or length) for x in shape.layers)
    return rows * total * item


def estimate_inference(
    config: Mapping[str, Any] | Shape,
    *,
    dtype: str = "bfloat16",
    weight_bits: int = 0,
    double_quant: bool = True,
    rows: int = 1,
    length: int = 2048,
    device: str = "cuda",
    parameters: int | None = None,
    stored_bytes: int | None = None,
) -> Estimate:
    """The peak memory of generating for `rows` requests at once, prompt and answer together `length` tokens long."""
    shape = config if isinstance(config, Shape) else shape_of(config, parameters)
    item = ITEM[dtype]
    cache = cache_bytes(shape, dtype, rows, length)
    widest = max((largest_transient(x, shape.hidden, Regime(item=item), 0) for x in shape.layers), default=0)
    largest = max((x.cached * min(length, x.window or length) for x in shape.layers), default=0)
    parts = {
        "weights": weight_bytes(shape, dtype, weight_bits, double_quant, stored_bytes),
        # the cache grows by concatenation: one layer's old and new tensors are there together
        "KV cache": cache + rows * largest * item,
        "activations": int(rows * length * widest),
        "logits": rows * shape.vocab * (item + 2 * WIDE),
        "framework": framework_bytes(device, quantizing=weight_bits > 0, media=shape.tower > 0),
    }
    return Estimate(parts)


@dataclass(frozen=True)
class Serving:
    """How much a serving engine can hold: `tokens` in its cache, `requests` of the asked length at the same time."""

    weights: int
    per_token: float
    tokens: int
    requests: int


def estimate_serving(
    shape: Shape,
    memory: int,
    *,
    dtype: str,
    length: int,
    weight_bits: int = 0,
    stored_bytes: int | None = None,
    share: float = 0.9,
) -> Serving:
    """Room for the cache of an engine that takes `share` of `memory` bytes."""
    weights = weight_bytes(shape, dtype, weight_bits, True, stored_bytes)
    one = cache_bytes(shape, dtype, 1, length)
    workspace = GPU_CONTEXT + shape.vocab * WIDE * 256 + int(0.02 * weights)
    room = max(0, int(memory * share) - weights - workspace)
    requests = room // one if one else 0
    return Serving(weights, one / length, requests * length if one else 0, requests)
