"""`swift plan` against `swift sft`: the estimated peak and the one that the operating system saw (ru_maxrss).

Each case saves a random model, writes rows that fill --max_length, plans the training by `swift plan --json true`, runs
two optimizer steps of `swift sft` with the same options in a child process on the CPU, and compares. Run by hand:

    python benchmarks/sft_memory.py [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SMOL = dict(
    hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3, head_dim=64, vocab_size=49152
)
MID = dict(
    hidden_size=512, intermediate_size=1408, num_attention_heads=8, num_key_value_heads=4, head_dim=64, vocab_size=32000
)
WIDE = dict(
    hidden_size=1024,
    intermediate_size=3072,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=64,
    vocab_size=151936,
)
TINY = dict(
    hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=512
)
FULL, BARE = ("--tuner_type", "full"), ("--gradient_checkpointing", "false")
BF16, PLAIN = ("--torch_dtype", "bfloat16"), ("--padding_free", "false")
QLORA = ("--load_in_4bit", "true")
MOE = {**MID, "moe_intermediate_size": 256, "num_experts": 16, "num_experts_per_tok": 4}
GPT2 = dict(hidden_size=576, num_attention_heads=9, n_positions=1024, vocab_size=32000)
BAMBA = {**MID, "mamba_n_heads": 16, "mamba_d_head": 64, "mamba_d_state": 32, "attn_layer_indices": [2]}
LLAVA = {
    "text_config": {**MID, "model_type": "llama", "num_hidden_layers": 4, "max_position_embeddings": 4096},
    "vision_config": dict(
        model_type="clip_vision_model",
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
        projection_dim=256,
    ),
}


def case(name: str, family: str, dims: dict, layers: int, batch: int, length: int, *options: str, tied: bool = True):
    dims = {**dims, "num_hidden_layers": layers, "tie_word_embeddings": tied, "max_position_embeddings": 4096}
    return name, family, dims, batch, length, list(options)


CASES = [
    case("tiny-lora", "llama", TINY, 2, 1, 128),
    case("tiny-full-long", "qwen2", TINY, 2, 8, 1024, *FULL, *BARE),
    case("smol-lora", "llama", SMOL, 6, 4, 512),
    case("smol-lora-bare", "llama", SMOL, 6, 2, 512, *BARE),
    case("smol-lora-plain", "llama", SMOL, 4, 2, 256, *BARE, *PLAIN),
    case("smol-bf16-bare", "llama", SMOL, 6, 2, 512, *BF16, *BARE),
    case("smol-full", "llama", SMOL, 6, 2, 256, *FULL),
    case("smol-full-bare", "llama", SMOL, 4, 2, 256, *FULL, *BARE),
    case("qwen3-bigvocab", "qwen3", WIDE, 2, 1, 256, *BARE),
    case("qwen3-full-untied", "qwen3", MID, 4, 2, 256, *FULL, *BARE, tied=False),
    case("gemma3-lora", "gemma3_text", {**MID, "vocab_size": 65536}, 4, 2, 256, *BARE),
    # not looked at while the estimate was made
    case("smol-lora-short-rows", "llama", SMOL, 6, 8, 128, *BARE),
    case("smol-lora-long-row", "llama", SMOL, 4, 1, 1536, *BARE),
    case("smol-lora-light", "llama", SMOL, 6, 2, 512, "--recompute", "light"),
    case("smol-lora-rank64", "llama", SMOL, 6, 2, 256, *BARE, "--lora_rank", "64", "--lora_dropout", "0.05"),
    case("smol-stored-bf16", "llama", {**SMOL, "dtype": "bfloat16"}, 6, 1, 256, *BARE),
    case("smol-qlora", "llama", SMOL, 6, 2, 512, *QLORA, *BARE),
    case("smol-qlora-checkpointing", "llama", SMOL, 6, 4, 512, *QLORA),
    case("gemma2-lora", "gemma2", MID, 6, 1, 512, *BARE),
    case("gemma2-full", "gemma2", MID, 4, 2, 256, *FULL),
    case("moe-lora-attention", "qwen3_moe", MOE, 4, 2, 256, *BARE, "--target_modules", "q_proj", "v_proj"),
    case("moe-full", "qwen3_moe", MOE, 3, 2, 512, *FULL, tied=False),
    case("gpt2-lora", "gpt2", GPT2, 8, 2, 512, *BARE),
    case("gpt2-full", "gpt2", GPT2, 6, 2, 256, *FULL),
    case("bamba-lora", "bamba", BAMBA, 4, 1, 256, *BARE, tied=False),
    case("bamba-full", "bamba", BAMBA, 4, 1, 256, *FULL, tied=False),
    case("llava-lora", "llava", LLAVA, 4, 2, 768, *BARE),
    case("llava-full", "llava", LLAVA, 4, 1, 768, *FULL),
]


def make_model(place: Path, family: str, dims: dict) -> None:
    import torch

    from tests import tiny, tiny_vlm

    dims = dict(dims)
    dtype = getattr(torch, dims.pop("dtype", "float32"))
    if family == "llava":
        kind, config, processor = tiny_vlm.llava(dims["text_config"], dims["vision_config"])
        torch.manual_seed(0)
        kind(config).save_pretrained(place)
        processor.save_pretrained(place)
        return
    tiny.model(family, **dims).to(dtype).save_pretrained(place)
    tiny.tokenizer(size=512).save_pretrained(place)


def write_rows(path: Path, length: int, images: bool) -> None:
    rng = random.Random(0)
    if images:
        from PIL import Image

        Image.new("RGB", (336, 336), (200, 30, 30)).save(path.with_suffix(".png"))
    with path.open("w") as file:
        # a row with an image can't be cut: 576 tokens of it, and letters of two each fill the rest
        letters = (length - 576 - 48) // 2 if images else length
        for _ in range(32):
            words = [" ".join(rng.choices("abcdefghij", k=k)) for k in (8, letters)]
            messages = [{"role": r, "content": w} for r, w in zip(("user", "assistant"), words, strict=True)]
            row = {"messages": messages}
            if images:
                messages[0]["content"] = "<image>" + words[0]
                row["images"] = [str(path.with_suffix(".png"))]
            file.write(json.dumps(row) + "\n")


def compare(name: str, family: str, dims: dict, batch: int, length: int, options: list[str]) -> float:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if os.fork() == 0:  # a model of its own process, so that nothing of it stays here
            make_model(place / "model", family, dims)
            os._exit(0)
        os.wait()
        write_rows(place / "rows.jsonl", length, images=family == "llava")
        words = ["--model", str(place / "model"), "--dataset", str(place / "rows.jsonl"), "--max_length", str(length)]
        words += ["--per_device_train_batch_size", str(batch), "--gradient_accumulation_steps", "2", *options]
        if "--torch_dtype" not in options:
            words += ["--torch_dtype", "float32"]
        words += ["--truncation_strategy", "right", "--split_dataset_ratio", "0", "--max_steps", "2"]
        words += ["--report_to", "none", "--output_dir", str(place / "out"), "--use_cpu", "true"]
        words += ["--save_strategy", "no"]
        plan = subprocess.run(
            [sys.executable, "-m", "swift", "plan", *words, "--json", "true"], env=env, capture_output=True, text=True
        )
        if plan.returncode:
            raise SystemExit(plan.stderr[-2000:])
        training = json.loads(plan.stdout)["training"]
        command = [sys.executable, "-m", "swift", "sft", *words]
        child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        told = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(told.decode()[-3000:])
    measured, guess = usage.ru_maxrss * 1024, training["total"]
    floor = training["parts"]["framework"]
    parts = " ".join(f"{k} {v / 1e6:.0f}" for k, v in training["parts"].items() if v)
    print(
        f"| {name} | {measured / 1e6:.0f} | {guess / 1e6:.0f} | {guess / measured - 1:+.1%} | "
        f"{(guess - floor) / max(1, measured - floor) - 1:+.1%} | {parts} |",
        flush=True,
    )
    return guess / measured - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=(), help="names of cases")
    args = parser.parse_args()
    print("| case | measured MB | estimated MB | error | error above the floor | parts |\n|---|---|---|---|---|---|")
    chosen = [each for each in CASES if not args.only or each[0] in args.only]
    errors = [compare(*each) for each in chosen]
    print(f"\n{len(errors)} cases, mean {sum(map(abs, errors)) / len(errors):.1%}, worst {max(errors, key=abs):+.1%}")


if __name__ == "__main__":
    main()
