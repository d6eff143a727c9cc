"""What an architecture goes through, in the words a user types, each step checked against plain transformers or peft.

`run_steps` gives {step: None, or the reason in words}. A step whose forerunner failed isn't tried: its reason is
"needs STEP".
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.matrix import senses
from tests.matrix.asked import Talks, Texts
from tests.matrix.checkpoint import build

STEPS = 6
FALLS_TO = 0.985  # the last loss is at most this share of the first
ANSWER = 8
COMMON = (
    "--output_dir {out} --add_version false --use_cpu true --torch_dtype float32 --report_to none --logging_steps 1"
)
TRAIN = "--per_device_train_batch_size {together} --gradient_accumulation_steps {apart} --lr_scheduler_type constant"


class Failed(Exception):
    """A step did not do what it promises; the message says what was seen."""


class Case:
    """One architecture in a directory of its own."""

    def __init__(self, model_type: str, root: Path):
        self.model_type, self.root = model_type, root
        self.base = root / "base"
        self.sees = senses.sees(model_type)

    @cached_property
    def asked(self) -> Texts | Talks:
        return Talks(self.base, self.model_type, self.root / "media") if self.sees else Texts(self.base)

    def swift(self, line: str) -> None:
        """Type a command of swift; what it reports as an error is raised."""
        from swift.cli import main

        code = main(line.split())
        if code != 0:
            raise Failed(f"`swift {line.split()[0]}` ended with {code}")

    def train(self, name: str, options: str) -> Path:
        out = self.root / name
        common = COMMON.format(out=out)
        apart = 4 if senses.recipe_of(self.model_type).alone else 1
        train = TRAIN.format(together=4 // apart, apart=apart)
        length = 4096 if self.sees else 256
        rows = f"--dataset {self.root}/rows.jsonl --max_length {length}"
        self.swift(f"sft --model {self.base} {rows} {common} {train} {options}")
        return out


def _losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "logging.jsonl").read_text().splitlines()]
    return [float(row["loss"]) for row in rows if "loss" in row]


def _check_falls(run: Path, steps: int) -> None:
    losses = _losses(run)
    if len(losses) != steps:
        raise Failed(f"{len(losses)} losses were logged in {steps} steps")
    if not losses[-1] < FALLS_TO * losses[0]:
        raise Failed(f"the loss doesn't fall: {losses[0]:.4f} at the first step, {losses[-1]:.4f} at the last")


def _tensors(directory: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return found


def _same_tensors(one: Path, other: Path) -> None:
    import torch

    a, b = _tensors(one), _tensors(other)
    if a.keys() != b.keys():
        raise Failed(f"other tensors after resuming: {sorted(a.keys() ^ b.keys())[:3]}")
    wrong = [name for name in a if not torch.equal(a[name], b[name])]
    if wrong:
        gap = max(float((a[n].float() - b[n].float()).abs().max()) for n in wrong)
        raise Failed(f"{len(wrong)} of {len(a)} weights differ from the undisturbed run's, by up to {gap:.2g}")


def _same_layout(base: Path, result: Path) -> None:
    a, b = _tensors(base), _tensors(result)
    extra, lost = sorted(b.keys() - a.keys()), sorted(a.keys() - b.keys())
    if extra or lost:
        raise Failed(f"other tensors than the base's are saved: not there {lost[:3]}, new {extra[:3]}")
    wrong = [name for name in a if a[name].shape != b[name].shape]
    if wrong:
        raise Failed(f"{wrong[0]} has another shape than in the base")


def plain(directory: Path, sees: bool = False):
    """What transformers alone makes of a directory, in float32."""
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    auto = AutoModelForMultimodalLM if sees else AutoModelForCausalLM
    model, info = auto.from_pretrained(directory, dtype="float32", output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise Failed(f"plain transformers misses {list(info['missing_keys'])[:2]} {list(info['unexpected_keys'])[:2]}")
    return model.eval()


def _logits(model, inputs: Sequence[Mapping[str, Any]]) -> list[Any]:
    import torch

    with torch.no_grad():
        return [model(**one, use_cache=False).logits[0].float() for one in inputs]


def _largest(one: list[Any], other: list[Any]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def step_build(case: Case) -> None:
    build(case.model_type, case.base)
    rows = case.asked.rows()
    (case.root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    plain(case.base, case.sees)


def step_media(case: Case) -> None:
    """swift makes of a conversation the ids and tensors that plain transformers makes; what is seen matters."""
    import torch

    asked = case.asked
    if not isinstance(asked, Talks):
        return
    encoder = asked.encoder(asked.processor.tokenizer)
    for talk, wanted in zip(asked.talks, asked.inputs, strict=True):
        ids, tensors = encoder.prompt_inputs(talk)
        found = {"input_ids": torch.tensor([ids]), **(tensors or {})}
        for name, tensor in found.items():
            if not torch.equal(torch.as_tensor(tensor).to(wanted[name].dtype), wanted[name]):
                raise Failed(
                    f"{name} of a question with {talk[0]['content'][0]['type']} isn't what its processor gives"
                )
    model = plain(case.base, sees=True)
    for number, kind in enumerate(asked.kinds):
        one, other = _logits(model, asked.inputs[2 * number : 2 * number + 2])
        if one.shape == other.shape and float((one[-1] - other[-1]).abs().max()) < 1e-5:
            raise Failed(f"another {kind} gives the same logits")


def step_lora(case: Case) -> None:
    run = case.train("lora", f"--tuner_type lora --learning_rate 1e-2 --max_steps {STEPS} --save_steps {STEPS // 2}")
    _check_falls(run, STEPS)


def step_resume(case: Case) -> None:
    run = case.root / "resumed"
    shutil.copytree(case.root / "lora", run, symlinks=True)
    shutil.rmtree(run / f"checkpoint-{STEPS}")
    options = f"--tuner_type lora --learning_rate 1e-2 --max_steps {STEPS} --save_steps {STEPS // 2}"
    case.train("resumed", f"{options} --resume_from_checkpoint {run}/checkpoint-{STEPS // 2}")
    _same_tensors(case.root / "lora" / f"checkpoint-{STEPS}", run / f"checkpoint-{STEPS}")


def _with_adapter(base, adapter: Path):
    """The base with the adapter in plain peft; its tensors where their names say (peft renames those of some
    architectures as the base's when it loads them, and drops what it then has no place for).
    """
    from peft import PeftModel
    from safetensors.torch import load_file

    tuned = PeftModel.from_pretrained(base, adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    named = {}
    for name, tensor in tensors.items():
        layer, _, part = name.removesuffix(".weight").rpartition(".")  # part: lora_A or lora_B
        named[f"{layer}.{part}.default.weight"] = tensor
    lost = tuned.load_state_dict(named, strict=False).unexpected_keys
    if lost:
        raise Failed(f"peft has no place for {lost[0]} of the adapter ({len(lost)} in all)")
    return tuned.eval()


def step_merge(case: Case) -> None:
    adapter, merged = case.root / "lora" / f"checkpoint-{STEPS}", case.root / "merged"
    case.swift(f"export --adapters {adapter} --merge_lora true --output_dir {merged}")
    base, inputs = plain(case.base, case.sees), case.asked.inputs
    before = _logits(base, inputs)
    tuned = _logits(_with_adapter(base, adapter), inputs)
    gap, effect = _largest(tuned, _logits(plain(merged, case.sees), inputs)), _largest(before, tuned)
    if not gap <= 1e-3 * max(1.0, max(float(t.abs().max()) for t in tuned)):
        raise Failed(f"merged logits differ by {gap:.2g} from base and adapter in peft (the adapter does {effect:.2g})")
    _same_layout(case.base, merged)


def step_full(case: Case) -> None:
    run = case.train(
        "full", "--tuner_type full --learning_rate 2e-3 --max_steps 4 --save_steps 4 --save_only_model true"
    )
    _check_falls(run, 4)
    saved = run / "checkpoint-4"
    _same_layout(case.base, saved)
    before, after = (_logits(plain(path, case.sees), case.asked.inputs) for path in (case.base, saved))
    if _largest(before, after) == 0:
        raise Failed("plain transformers sees no change in the saved weights")


def _loaded(case: Case, **quantization: Any):
    from swift.config.model import ModelOptions, QuantizationOptions
    from swift.hub import check_model_files
    from swift.models.device import pick_device
    from swift.models.load import load_model, load_tokenizer
    from swift.models.plan import plan_loading

    options = ModelOptions(model=str(case.base), torch_dtype="float32")
    files = check_model_files(case.base)
    plan = plan_loading(options, QuantizationOptions(**quantization), files, pick_device(True), training=False)
    return load_model(case.base, plan), load_tokenizer(case.base)


def _engine_answers(case: Case, model, tokenizer) -> list[list[int]]:
    from swift.engines.protocol import GenerationRequest, Sampling, generate_all
    from swift.engines.pt import PtEngine

    engine = PtEngine(model, tokenizer, case.asked.encoder(tokenizer), max_batch_size=4)
    try:
        sampling = Sampling(max_new_tokens=ANSWER, temperature=0)
        asked = [GenerationRequest(**request, sampling=sampling) for request in case.asked.requests()]
        return [list(result.token_ids) for result in generate_all(engine, asked)]
    finally:
        engine.close()


def step_generate(case: Case) -> None:
    """The engine's answers to three prompts at once are those of `generate`, one by one."""
    model = plain(case.base, case.sees)
    model.generation_config.pad_token_id = 0
    wanted = []
    for one in case.asked.inputs:
        try:
            out = model.generate(**one, max_new_tokens=ANSWER, do_sample=False)
        except Exception as error:
            raise Failed(f"`generate` of plain transformers fails: {words_of(error)}") from error
        wanted.append(out[0, one["input_ids"].shape[1] :].tolist())
    given = _engine_answers(case, *_loaded(case))
    ends = {2}
    wanted = [ids[: next((i for i, t in enumerate(ids) if t in ends), len(ids))] for ids in wanted]
    given = [ids[: next((i for i, t in enumerate(ids) if t in ends), len(ids))] for ids in given]
    if wanted != given:
        bad = next(i for i, (a, b) in enumerate(zip(wanted, given, strict=True)) if a != b)
        size = case.asked.inputs[bad]["input_ids"].shape[1]
        raise Failed(f"for {size} tokens `generate` answers {wanted[bad]}, the engine {given[bad]}")


def _dequantized(model) -> dict[str, Any]:
    """Name of each quantized weight -> the plain numbers that it stands for, by bitsandbytes' own functions."""
    import bitsandbytes as bnb
    from transformers.pytorch_utils import Conv1D

    from swift.models.packed import PackedWeight

    found = {name: p.plain() for name, p in model.named_parameters() if isinstance(p, PackedWeight)}
    for name, layer in model.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            numbers = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            found[f"{name}.weight"] = numbers.reshape(layer.out_features, layer.in_features)
        elif isinstance(layer, bnb.nn.Linear8bitLt):
            found[f"{name}.weight"] = bnb.functional.int8_vectorwise_dequant(layer.weight.CB, layer.weight.SCB)
        else:
            continue
        if issubclass(getattr(layer, "source_cls", object), Conv1D):  # which stores its weight the other way round
            found[f"{name}.weight"] = found[f"{name}.weight"].T
    return found


def _quantized(case: Case, bits: int, coarseness: float) -> None:
    """Weights loaded in few bits are near the plain ones, the model computes with what they stand for, answers and
    trains.
    """
    import torch

    model, tokenizer = _loaded(case, quant_method="bnb", quant_bits=bits)
    numbers, twin = _dequantized(model), plain(case.base, case.sees)
    if not numbers:
        raise Failed("no weight was quantized")
    own = dict(twin.named_parameters())
    with torch.no_grad():
        for name, rounded in numbers.items():
            rounded = rounded.float()
            share = float((rounded - own[name]).norm() / own[name].norm())
            if not share < coarseness:
                raise Failed(f"{name} is off by {100 * share:.0f} % in {bits} bits")
            own[name].copy_(rounded)
    exact, given = _logits(twin, case.asked.inputs), _logits(model, case.asked.inputs)
    off = sum(float((a - b).norm()) for a, b in zip(exact, given, strict=True))
    share = off / sum(float((a - a.mean()).norm()) for a in exact)
    if not share < 0.4:
        raise Failed(f"the logits are off by {100 * share:.0f} % of their spread from those of the rounded weights")
    _engine_answers(case, model, tokenizer)
    options = f"--tuner_type lora --learning_rate 1e-2 --max_steps 4 --save_strategy no --load_in_{bits}bit true"
    run = case.train(f"bits{bits}", options)
    _check_falls(run, 4)


def step_8bit(case: Case) -> None:
    _quantized(case, 8, 0.02)


def step_4bit(case: Case) -> None:
    _quantized(case, 4, 0.15)


# step -> (function, the steps that it needs)
STEP_ORDER: dict[str, tuple[Callable[[Case], None], tuple[str, ...]]] = {
    "build": (step_build, ()),
    "media": (step_media, ("build",)),
    "lora": (step_lora, ("build",)),
    "resume": (step_resume, ("lora",)),
    "merge": (step_merge, ("lora",)),
    "full": (step_full, ("build",)),
    "generate": (step_generate, ("build",)),
    "8bit": (step_8bit, ("build",)),
    "4bit": (step_4bit, ("build",)),
}


def words_of(error: BaseException) -> str:
    """The reason in one line."""
    what = getattr(error, "what", None) or str(error) or type(error).__name__
    what = " ".join(str(what).split())
    known = isinstance(error, Failed) or hasattr(error, "what")
    return (what if known else f"{type(error).__name__}: {what}")[:240]


def run_steps(model_type: str, root: Path, report: Callable[[str, str | None], None]) -> dict[str, str | None]:
    """All steps for one architecture, in `root` (an empty directory); `report` hears of each as it ends."""
    os.environ["SWIFT_DEBUG"] = "1"  # errors come as they are
    os.environ["SWIFT_CACHE"] = str(root / "cache")
    case = Case(model_type, root)
    outcome: dict[str, str | None] = {}
    for name, (step, needs) in STEP_ORDER.items():
        missing = [need for need in needs if outcome[need] is not None]
        if missing:
            outcome[name] = f"needs {missing[0]}"
        else:
            outcome[name] = None
            try:
                step(case)
            except Exception as error:
                outcome[name] = words_of(error)
                if os.environ.get("MATRIX_TRACE"):
                    import traceback

                    with contextlib.suppress(BrokenPipeError):
                        traceback.print_exc()
        report(name, outcome[name])
    return outcome
