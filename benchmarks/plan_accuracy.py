"""`swift plan` against the truth: estimated and measured peak memory of plain transformers + peft training.

Each case runs in a child process on the CPU: a random model, HF Trainer, two optimizer steps on full-length rows. The
peak is VmHWM (reset after the imports), the floor what the process held before the model was made. Run by hand:

    python benchmarks/plan_accuracy.py [--quick] [--only NAME] [--markdown] [--stock-malloc]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMOL = dict(
    hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3, head_dim=64, vocab_size=49152
)
MID = dict(
    hidden_size=512, intermediate_size=1408, num_attention_heads=8, num_key_value_heads=4, head_dim=64, vocab_size=32000
)
WIDE = dict(hidden_size=1024, intermediate_size=3072, num_attention_heads=16, num_key_value_heads=8, head_dim=64)
MOE = dict(moe_intermediate_size=256, num_experts=16, num_experts_per_tok=4)


def case(name: str, family: str, dims: dict, layers: int, tied: bool = False, **training) -> dict:
    config = {**dims, "num_hidden_layers": layers, "tie_word_embeddings": tied, "max_position_embeddings": 4096}
    return {"name": name, "family": family, "config": config, "training": training}


CASES = [
    case("smol-lora-gc", "llama", SMOL, 12, True, batch=2, length=512, checkpointing=True),
    case("smol-lora", "llama", SMOL, 12, True, batch=2, length=256, checkpointing=False),
    case("smol-lora-dropout", "llama", SMOL, 8, True, batch=2, length=256, checkpointing=False, dropout=0.05),
    case("smol-full-gc", "llama", SMOL, 12, True, batch=1, length=512, full=True, checkpointing=True),
    case("smol-full", "llama", SMOL, 8, True, batch=2, length=256, full=True, checkpointing=False),
    case("smol-lora-long", "llama", SMOL, 6, True, batch=1, length=1536, checkpointing=False, dropout=0.05),
    case(
        "smol-bf16-lora",
        "llama",
        SMOL,
        8,
        True,
        batch=1,
        length=256,
        checkpointing=False,
        dtype="bfloat16",
        dropout=0.05,
    ),
    case("smol-bf16-lora-gc", "llama", SMOL, 8, True, batch=1, length=256, checkpointing=True, dtype="bfloat16"),
    case(
        "smol-bf16-full", "llama", SMOL, 8, True, batch=1, length=192, full=True, checkpointing=False, dtype="bfloat16"
    ),
    case("qwen2-lora", "qwen2", MID, 8, batch=4, length=256, checkpointing=False),
    case("qwen3-full", "qwen3", MID, 8, batch=2, length=512, full=True, checkpointing=False),
    case(
        "qwen3-bigvocab-gc", "qwen3", {**WIDE, "vocab_size": 151936}, 3, True, batch=1, length=256, checkpointing=True
    ),
    case("gemma3-lora", "gemma3_text", {**MID, "vocab_size": 65536}, 6, True, batch=2, length=256, checkpointing=False),
    case("gemma2-lora", "gemma2", MID, 6, True, batch=1, length=512, checkpointing=False, attention="eager"),
    case("phi3-full-gc", "phi3", MID, 10, batch=2, length=512, full=True, checkpointing=True),
    case("mistral-accumulate", "mistral", MID, 10, batch=2, length=256, full=True, checkpointing=False, accumulation=2),
    case(
        "moe-attention",
        "qwen3_moe",
        {**MID, **MOE},
        6,
        batch=2,
        length=256,
        checkpointing=False,
        targets=("q_proj", "k_proj", "v_proj", "o_proj"),
    ),
    case("moe-full-gc", "qwen3_moe", {**MID, **MOE}, 5, batch=2, length=512, full=True, checkpointing=True),
]
QUICK = ("smol-lora", "smol-full-gc", "qwen3-bigvocab-gc")


def measure(spec: dict) -> dict:
    """In the child: build, train two optimizer steps, and report the floor and the peak in bytes."""
    import warnings

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training = training_of(spec)
    config = AutoConfig.for_model(spec["family"], **spec["config"], bos_token_id=None, eos_token_id=2, pad_token_id=0)
    _warm_up()
    floor = status("VmRSS")
    model = AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, training.dtype), attn_implementation=training.attention
    )
    if not training.full:
        targets = "all-linear" if training.targets == ("all-linear",) else list(training.targets)
        lora = LoraConfig(r=training.rank, lora_dropout=training.dropout, target_modules=targets, task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    ids = torch.randint(3, config.vocab_size, (training.batch * training.accumulation * 2, training.length))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(
        output_dir="unused",
        per_device_train_batch_size=training.batch,
        gradient_accumulation_steps=training.accumulation,
        max_steps=2,
        optim=training.optimizer,
        bf16=training.dtype == "bfloat16",
        gradient_checkpointing=training.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    Path("/proc/self/clear_refs").write_text("5")
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"floor": floor, "peak": status("VmHWM"), "trainable": trainable}


def _warm_up() -> None:
    """Load what the first step of any training loads, so that the floor holds it."""
    import torch
    from transformers.trainer import Trainer  # noqa: F401

    layer = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    layer(torch.randn(2, 8)).sum().backward()
    optimizer.step()


def training_of(spec: dict, stock_malloc: bool = False):
    from swift.advise.memory import Training

    base = dict(dtype="float32", dropout=0.0, rows_differ=False, device="cpu", glibc=stock_malloc)
    return Training(**{**base, **{k: tuple(v) if isinstance(v, list) else v for k, v in spec["training"].items()}})


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def run_child(spec: dict, stock_malloc: bool) -> dict:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if not stock_malloc:
        # The allocator keeps freed blocks below a threshold that grows by itself; fixed, it gives them back at once.
        env["MALLOC_MMAP_THRESHOLD_"] = "65536"
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(spec)], capture_output=True, text=True, env=env
    )
    if done.returncode:
        raise SystemExit(f"{spec['name']} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(spec: dict, stock_malloc: bool = False) -> dict:
    from swift.advise.memory import estimate

    measured = run_child(spec, stock_malloc)
    guess = estimate({"model_type": spec["family"], **spec["config"]}, training_of(spec, stock_malloc))
    above = measured["peak"] - measured["floor"]
    return {
        "name": spec["name"],
        "measured": above,
        "estimated": guess.above_framework,
        "error": guess.above_framework / above - 1,
        "floor": measured["floor"],
        "total_error": guess.total / measured["peak"] - 1,
        "trainable": (measured["trainable"], guess.trainable),
        "parts": {k: round(v / 1e6) for k, v in guess.parts.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--stock-malloc", action="store_true", help="leave the C allocator as it is")
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(json.loads(args.child))))
        return
    chosen = [c for c in CASES if (not args.quick or c["name"] in QUICK) and (not args.only or args.only in c["name"])]
    rows = []
    print("| case | measured MB | estimated MB | error | floor MB | error of the total |\n|---|---|---|---|---|---|")
    for spec in chosen:
        row = compare(spec, args.stock_malloc)
        rows.append(row)
        m, e = row["measured"] / 1e6, row["estimated"] / 1e6
        line = f"| {row['name']} | {m:.0f} | {e:.0f} | {row['error']:+.1%} | {row['floor'] / 1e6:.0f} |"
        line += f" {row['total_error']:+.1%} |"
        print(line if args.markdown else f"{line} {row['parts']} trainable {row['trainable']}", flush=True)
    worst = max(rows, key=lambda r: abs(r["error"]))
    mean = sum(abs(r["error"]) for r in rows) / len(rows)
    print(f"\n{len(rows)} cases, mean error {mean:.1%}, worst {worst['error']:+.1%} ({worst['name']})")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
