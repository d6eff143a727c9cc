"""Fine-tuning beside others: the same rows, order, seed, optimizer and number of steps, one thread, CPU-seconds.

    make bench-train MODEL=DIR ROWS=alpaca_en_demo.json
    python benchmarks/train.py --model DIR --rows FILE [--dtype float32 bfloat16] [--tuner lora full] [--steps 8]
    python benchmarks/train.py --shape qwen3-152k --model DIR --rows FILE     # random weights, DIR gives the tokenizer
    python benchmarks/train.py --model DIR --rows documents.jsonl --shortest 2048 --longest 2048 --batch 1
    python benchmarks/train.py --model DIR --rows FILE --longest 48                             # very short turns
    python benchmarks/train.py --model DIR --rows FILE --tuner dora --dropout 0.05              # its masks differ
    python benchmarks/train.py --model DIR --rows FILE --bits 4                                 # bitsandbytes

Every run is a process of its own and the contestants take turns, `--rounds` times. "useful tok/s" are tokens that are
no padding, per CPU-second of the training loop after the first step. "above floor" is the peak of resident memory
(VmHWM, reset when the weights are loaded and touched) minus what was resident then. Losses are compared with those of
HF Trainer + peft in float32. A contestant that didn't make every step is refused. ROWS: a JSON list of objects with
instruction, input and output; or JSON lines with `text`, all of whose tokens are learned, each cut at `--longest`.
Rows of fewer than `--shortest` tokens or more than `--longest` are passed over.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {
    "qwen3-152k": dict(
        family="qwen3", vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=4,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    ),
    "gemma2": dict(
        family="gemma2", vocab_size=65536, hidden_size=512, intermediate_size=2048, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=4, head_dim=64, sliding_window=128,
    ),
    "gemma3": dict(
        family="gemma3_text", vocab_size=65536, hidden_size=512, intermediate_size=2048, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=1, head_dim=128, sliding_window=128,
    ),
    "qwen3-moe": dict(
        family="qwen3_moe", vocab_size=65536, hidden_size=512, intermediate_size=1024, moe_intermediate_size=384,
        num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, head_dim=64, num_experts=8,
        num_experts_per_tok=2, tie_word_embeddings=True,
    ),
}  # fmt: skip
# contestant -> (which trainer, its settings)
CONTESTANTS = {
    "HF + checkpointing": ("hf", {"checkpointing": True}),
    "HF": ("hf", {}),
    "HF, more padding": ("hf", {"multiple": 64}),
    "TRL padding-free + checkpointing": ("trl", {"checkpointing": True}),
    "TRL padding-free": ("trl", {}),
    "swift": ("swift", {"recompute": "none"}),
    "swift, compiled": ("swift", {"recompute": "none", "torch_compile": True}),
    "swift, light": ("swift", {"recompute": "light"}),
    "swift, full": ("swift", {"recompute": "full"}),
    "swift, no fused layers": ("swift", {"recompute": "none", "fused_layers": False}),
    "swift, joined rows only": ("swift", {"recompute": "none", "fused_layers": False, "lean_head": False}),
}
USUAL = [name for name in CONTESTANTS if not any(word in name for word in ("only", "no fused", "more", "compiled"))]
REFERENCE = "HF + checkpointing"


# ---- one run, in a child process ----


def load(task: dict):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = getattr(torch, task["dtype"])
    torch.manual_seed(0)
    if task["shape"]:
        values = dict(SHAPES[task["shape"]])
        config = AutoConfig.for_model(values.pop("family"), **values)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    else:
        few = few_bits(task["bits"], dtype)
        model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=dtype, **few)
    for parameter in model.parameters():
        parameter.detach().float().sum()
    if task["tuner"] != "full":
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        config = LoraConfig(
            r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=task["dropout"],
            use_dora=task["tuner"] == "dora",
        )  # fmt: skip
        model = get_peft_model(model, config)
    return model.train()


def few_bits(bits: int, dtype) -> dict:
    from transformers import BitsAndBytesConfig

    if not bits:
        return {}
    config = BitsAndBytesConfig(
        load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config, "device_map": "cpu"}


def pad(rows: list[dict], multiple: int = 1) -> dict:
    import torch

    width = -(-max(len(row["input_ids"]) for row in rows) // multiple) * multiple
    batch = {name: [] for name in ("input_ids", "labels", "attention_mask")}
    for row in rows:
        short = width - len(row["input_ids"])
        batch["input_ids"].append(row["input_ids"] + [0] * short)
        batch["labels"].append(row["labels"] + [-100] * short)
        batch["attention_mask"].append([1] * len(row["input_ids"]) + [0] * short)
    return {name: torch.tensor(values) for name, values in batch.items()}


def status(name: str) -> float:
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) / 1024


def run(task: dict) -> dict:
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(1)
    model = load(task)
    make = {"hf": plain_trainer, "trl": trl_trainer, "swift": swift_trainer}[task["kind"]]
    with tempfile.TemporaryDirectory() as place:
        trainer = make(task, model, place)
        clock: list[float] = []

        class Clock(TrainerCallback):
            def on_step_end(self, *args, **kwargs):
                clock.append(time.process_time())

        trainer.add_callback(Clock())
        floor = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        trainer.train()
        peak = status("VmHWM")
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    if len(clock) != task["steps"] or len(losses) != task["steps"]:
        return {"refused": f"made {len(clock)} steps of {task['steps']} and logged {len(losses)} losses"}
    tokens = sum(len(row["input_ids"]) for row in task["rows"][task["batch"] :])
    return {"seconds": clock[-1] - clock[0], "tokens": tokens, "above": peak - floor, "losses": losses}


def arguments(task: dict, place: str) -> dict:
    return dict(
        output_dir=place, per_device_train_batch_size=task["batch"], max_steps=task["steps"], learning_rate=1e-4,
        lr_scheduler_type="constant", weight_decay=0.0, adam_beta2=0.95, logging_steps=1, save_strategy="no",
        report_to="none", disable_tqdm=True, use_cpu=True, seed=42, bf16=task["dtype"] == "bfloat16",
        gradient_checkpointing=task.get("checkpointing", False), remove_unused_columns=False,
        gradient_checkpointing_kwargs={"use_reentrant": False}, dataloader_pin_memory=False,
    )  # fmt: skip


def plain_trainer(task: dict, model, place: str):
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class InOrder(Trainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset)

    args = TrainingArguments(**arguments(task, place))
    collate = partial(pad, multiple=task.get("multiple", 1))
    trainer = InOrder(model=model, args=args, train_dataset=task["rows"], data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    return trainer


def trl_trainer(task: dict, model, place: str):
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset)

    args = SFTConfig(
        **arguments(task, place),
        padding_free=True,
        completion_only_loss=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    rows = [
        {
            "input_ids": row["input_ids"],
            "labels": row["labels"],
            "completion_mask": [int(label != -100) for label in row["labels"]],
        }
        for row in task["rows"]
    ]
    trainer = InOrder(
        model=model, args=args, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(task["model"]),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def swift_trainer(task: dict, model, place: str):
    from transformers import AutoTokenizer

    from swift.config.commands import SftConfig
    from swift.config.decide import decide_sft
    from swift.train.arguments import training_arguments
    from swift.train.build import build_trainer

    typed = dict(
        per_device_train_batch_size=task["batch"], gradient_accumulation_steps=1, max_steps=task["steps"],
        learning_rate=1e-4, lr_scheduler_type="constant", weight_decay=0.0, warmup_steps=0.0, logging_steps=1.0,
        save_strategy="no", report_to=("none",), use_cpu=True, bf16=task["dtype"] == "bfloat16", lora_dropout=0.0,
        train_dataloader_shuffle=False, dataloader_pin_memory=False, log_level="error",
        tuner_type="full" if task["tuner"] == "full" else "lora",
        recompute=task["recompute"],
    )  # fmt: skip
    parts = ("fused_layers", "lean_head", "padding_free", "torch_compile")
    typed |= {name: task[name] for name in parts if name in task}
    config = decide_sft(SftConfig().replace(typed, "command line"), "bench", 2048)
    args = training_arguments(config, task["steps"])
    args.output_dir = place
    return build_trainer(
        config, args, model, AutoTokenizer.from_pretrained(task["model"]), task["rows"], None,
        lambda rows: {**pad(rows), "row_ids": list(range(len(rows)))}, sources=str,
    )  # fmt: skip


# ---- all of them ----


def encoded(model: str, path: str, count: int, shortest: int, longest: int) -> list[dict]:
    """The first rows of such lengths as ids and labels, chats by the tokenizer's own template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    text = Path(path).read_text(encoding="utf-8")
    found = map(json.loads, text.splitlines()) if path.endswith(".jsonl") else json.loads(text)
    rows = []
    for row in found:
        made = document(tokenizer, row["text"], longest) if "text" in row else chat(tokenizer, row)
        if shortest <= len(made["input_ids"]) <= longest:
            rows.append(made)
        if len(rows) == count:
            return rows
    sys.exit(f"{path} holds {len(rows)} rows of {shortest} to {longest} tokens, not {count}")


def document(tokenizer, text: str, longest: int) -> dict:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:longest]
    return {"input_ids": ids, "labels": list(ids)}


def chat(tokenizer, row: dict) -> dict:
    asked = [{"role": "user", "content": "\n".join(filter(None, (row["instruction"], row.get("input"))))}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": row["output"]}], tokenize=False)
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = before + tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
    return {"input_ids": ids, "labels": [-100] * len(before) + ids[len(before) :]}


def measure(name: str, task: dict) -> dict:
    kind, settings = CONTESTANTS[name]
    text = json.dumps({**task, **settings, "kind": kind})
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, __file__, "--child"], input=text, capture_output=True, text=True, env=env, timeout=1800
    )
    if done.returncode:
        return {"refused": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(task: dict, names: list[str], rounds: int) -> dict[str, list[float]]:
    """Print the table; the losses of each contestant, step by step."""
    found: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(measure(name, task))
            print(f"  {name}: {brief(found[name][-1])}", file=sys.stderr, flush=True)
    exact = measure("HF", {**task, "dtype": "float32"})["losses"] if task["dtype"] != "float32" else None
    print(f"\n{task['dtype']}, {task['tuner']}, {task['shape'] or Path(task['model']).name}, {task['steps']} steps of "
          f"{task['batch']} rows, {rounds} rounds\n")  # fmt: skip
    print("| | useful tok/CPU-s | x | above floor, MB | x | last loss | farthest from float32 |")
    print("|---|---|---|---|---|---|---|")
    sums = {name: summed(runs) for name, runs in found.items()}
    base = sums.get(REFERENCE) or next(iter(sums.values()))
    for name, value in sums.items():
        if "refused" in value:
            print(f"| {name} | refused: {value['refused']} | | | | | |")
            continue
        truth = exact or (base["losses"] if "losses" in base else value["losses"])
        away = max(abs(a - b) for a, b in zip(value["losses"], truth, strict=True))
        print(
            f"| {name} | {value['speed']:.0f} | {value['speed'] / base['speed']:.2f} | {value['above']:.0f} | "
            f"{value['above'] / base['above']:.2f} | {value['losses'][-1]:.5f} | {away:.5f} |"
        )
    return {name: value["losses"] for name, value in sums.items() if "losses" in value}


def brief(value: dict) -> str:
    if "refused" in value:
        return f"refused: {value['refused']}"
    return f"{value['tokens'] / value['seconds']:.0f} tok/CPU-s, {value['above']:.0f} MB above floor"


def summed(runs: list[dict]) -> dict:
    refused = [value for value in runs if "refused" in value]
    if refused:
        return refused[0]
    return {
        "speed": median(value["tokens"] / value["seconds"] for value in runs),
        "above": median(value["above"] for value in runs),
        "losses": runs[0]["losses"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model")
    parser.add_argument("--rows")
    parser.add_argument("--shape", choices=SHAPES, default="")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--tuner", nargs="+", default=["lora"], choices=("lora", "dora", "full"))
    parser.add_argument("--dropout", type=float, default=0.0, help="of LoRA")
    parser.add_argument("--bits", type=int, default=0, choices=(0, 4, 8))
    parser.add_argument("--only", nargs="+", default=USUAL, choices=list(CONTESTANTS))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--shortest", type=int, default=1)
    parser.add_argument("--longest", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--losses", help="a file for all losses, JSON lines of dtype, tuner and losses by contestant")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run(json.load(sys.stdin))))
        return
    rows = encoded(options.model, options.rows, options.steps * options.batch, options.shortest, options.longest)
    task = {
        "model": options.model,
        "shape": options.shape,
        "steps": options.steps,
        "batch": options.batch,
        "dropout": options.dropout,
        "bits": options.bits,
        "rows": rows,
    }
    for dtype in options.dtype:
        for tuner in options.tuner:
            losses = compare({**task, "dtype": dtype, "tuner": tuner}, options.only, options.rounds)
            if options.losses:
                with Path(options.losses).open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"dtype": dtype, "tuner": tuner, "losses": losses}) + "\n")


if __name__ == "__main__":
    main()
