"""Perplexity of what `swift export` writes, for each method, on a text that no calibration row comes from.

python benchmarks/methods.py --model DIR --rows alpaca.json --text FILE ... [--only awq gptq ...]
    [--llama_python PYTHON_WITH_LLAMA_CPP]

Every result is written by the command, and read back as `swift infer` would (GGUF: by transformers, dequantized).
Judged on --windows windows of 512 tokens of each --text in float32; behind the perplexity what is added to the loss,
with the standard error over the windows (paired). "llama.cpp TYPE": its own quantizer on our F16 file.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from swift.cli import main as swift
from swift.config.model import ModelOptions, QuantizationOptions
from swift.hub import check_model_files
from swift.models.device import pick_device
from swift.models.load import load_model
from swift.models.plan import plan_loading

METHODS = {
    "fp8": [],
    "bnb 8": ["--quant_method", "bnb", "--quant_bits", "8"],
    "bnb 4 (nf4)": ["--quant_method", "bnb", "--quant_bits", "4"],
    "gguf F16": ["--quant_method", "gguf", "--gguf_type", "F16"],
    "gguf Q8_0": ["--quant_method", "gguf", "--gguf_type", "Q8_0"],
    "gguf Q4_K_M": ["--quant_method", "gguf", "--gguf_type", "Q4_K_M"],
    "gguf Q5_1": ["--quant_method", "gguf", "--gguf_type", "Q5_1"],
    "gguf Q4_1": ["--quant_method", "gguf", "--gguf_type", "Q4_1"],
    "gguf Q4_0": ["--quant_method", "gguf", "--gguf_type", "Q4_0"],
    "gguf Q4_1 rows": ["--quant_method", "gguf", "--gguf_type", "Q4_1"],
    "gguf Q4_0 rows": ["--quant_method", "gguf", "--gguf_type", "Q4_0"],
    "gptq 8": ["--quant_method", "gptq", "--quant_bits", "8", "--group_size", "64"],
    "gptq 4": ["--quant_method", "gptq", "--group_size", "64"],
    "awq 4": ["--quant_method", "awq", "--group_size", "64"],
    "awq 4 search": ["--quant_method", "awq", "--group_size", "64", "--quant_search", "true"],
}
LLAMA_TYPES = {"llama.cpp Q4_0": 2, "llama.cpp Q8_0": 7, "llama.cpp Q4_K_M": 15}
LLAMA = (
    "import sys, ctypes, llama_cpp as l; p = l.llama_model_quantize_default_params(); p.nthread = 1\n"
    "p.ftype = int(sys.argv[3]); sys.exit(l.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), "
    "ctypes.byref(p)))"
)
CALIBRATION = ["--quant_n_samples", "32", "--max_length", "256"]


@torch.no_grad()
def losses(model, windows: torch.Tensor) -> torch.Tensor:
    """The mean loss of every window."""
    found = []
    for ids in windows:
        logits = model(ids[None], use_cache=False).logits[0].float()
        found.append(torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).item())
    return torch.tensor(found)


def load(directory: Path):
    files = list(directory.glob("*.gguf"))
    if files:
        settings = dict(gguf_file=files[0].name, quantization_config=GgufConfig(dequantize=True))
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **settings).eval()
    options = ModelOptions(torch_dtype="float32")
    plan = plan_loading(options, QuantizationOptions(), check_model_files(directory), pick_device(), training=False)
    return load_model(directory, plan)


def write(name: str, options: argparse.Namespace, out: Path) -> float | None:
    """Write the model of this name to `out`; CPU-seconds, None where the command failed."""
    if name in LLAMA_TYPES:
        words = METHODS["gguf F16"]
    else:
        words = METHODS[name] or ["--quant_method", name]
    calibrated = name.split()[0] in ("awq", "gptq") or name.endswith("rows")
    rows = ["--dataset", options.rows, *CALIBRATION] if calibrated else []
    start = time.process_time()
    if swift(["export", "--model", options.model, *words, *rows, "--output_dir", str(out)]):
        return None
    if name in LLAMA_TYPES:
        plain = next(out.glob("*.gguf"))
        command = [options.llama_python, "-c", LLAMA, plain, out / "llama.gguf", str(LLAMA_TYPES[name])]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        plain.unlink()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--text", required=True, nargs="+")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--only", nargs="*", default=list(METHODS))
    parser.add_argument("--llama_python")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    windows = {}
    for text in options.text:
        ids = tokenizer(Path(text).read_text(encoding="utf-8"))["input_ids"]
        step = max(512, len(ids) // options.windows)
        windows[text] = torch.stack([torch.tensor(ids[i * step : i * step + 512]) for i in range(options.windows)])
    model = load(Path(options.model))
    source = {text: losses(model, found) for text, found in windows.items()}
    del model
    print("| source |", " | ".join(f"{math.exp(found.mean()):.3f}" for found in source.values()), flush=True)
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            spent = write(name, options, out)
            if spent is None:
                print(f"{name}: refused or failed", flush=True)
                continue
            size = sum(f.stat().st_size for f in out.iterdir() if f.suffix in (".safetensors", ".gguf"))
            model, cells = load(out), []
            for text, found in windows.items():
                now = losses(model, found)
                gap = now - source[text]
                error = gap.std() / len(gap) ** 0.5
                cells.append(f"{math.exp(now.mean()):.3f} ({gap.mean():+.4f} ± {error:.4f})")
            print(f"| {name} | {' | '.join(cells)} | {size / 1e6:.0f} MB | {spent:.0f} |", flush=True)


if __name__ == "__main__":
    main()
