"""What it costs to begin: a one-step run and a one-token answer against the imports that they can't do without.

    python benchmarks/start.py --model DIR [--rounds 3]

CPU-seconds (user + system, children included) of whole processes, the smallest of the rounds, which alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROW = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello to you."}]}
CLASS = "from transformers import LlamaForCausalLM as model; model"
IMPORTS = {
    "import torch, transformers": "import torch, transformers",
    "... and a model's class": CLASS,
    "... and Trainer and peft": f"{CLASS}; from transformers import Trainer; import peft",
}


def cpu_seconds(command: list[str]) -> float:
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    python = sys.executable
    with tempfile.TemporaryDirectory() as home:
        rows = Path(home) / "rows.jsonl"
        rows.write_text(json.dumps(ROW) + "\n")
        model = ["--model", args.model, "--torch_dtype", "float32"]
        train = ["--dataset", str(rows), "--max_steps", "1", "--output_dir", f"{home}/out"]
        answer = ["--prompt", "Hello", "--max_new_tokens", "1", "--temperature", "0"]
        commands = {name: [python, "-c", code] for name, code in IMPORTS.items()}
        commands["swift list-models"] = [python, "-m", "swift", "list-models", "qwen3"]
        commands["swift sft, one step"] = [python, "-m", "swift", "sft", *model, *train]
        commands["swift infer, one token"] = [python, "-m", "swift", "infer", *model, *answer]
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(args.rounds):
            for name, command in commands.items():
                taken[name].append(cpu_seconds(command))
    bare, *_ = base = [min(taken[name]) for name in IMPORTS]
    print("| command | CPU-s | times the bare import | with the class | with Trainer and peft |\n|---|---|---|---|---|")
    for name, values in taken.items():
        print(f"| {name} | {min(values):.1f} | " + " | ".join(f"{min(values) / one:.2f}" for one in base) + " |")
    print(f"\n{args.rounds} rounds, load {os.getloadavg()[0]:.1f}, bare import {bare:.2f}")


if __name__ == "__main__":
    main()
