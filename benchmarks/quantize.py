"""Perplexity of 4-bit AWQ and GPTQ: calibrated on chat rows, judged on texts that aren't.

python benchmarks/quantize.py --model DIR --rows alpaca.json --text FILE ... --kind awq|awq-search|gptq
Calibration: 32 samples of 256 tokens. Judged on --windows windows of 512 tokens of each text from character --start.
`loss`: what quantizing adds to the loss of a token, with the standard error over the windows (paired).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from swift.export.layers import find_layers
from swift.export.layerwise import LayerJob, Recipe, hub_names, quantize_layers
from swift.models.packing import unpack_awq, unpack_gptq

KINDS = {
    "awq": dict(layout="awq", scales=True, gptq=False, source_inputs=True),
    "awq-search": dict(layout="awq", scales=True, gptq=True, damping=0.1),
    "gptq": dict(layout="gptq", scales=False, gptq=True, symmetric=True),
    "gptq-asymmetric": dict(layout="gptq", scales=False, gptq=True),
}


@torch.no_grad()
def losses(model, windows: torch.Tensor) -> torch.Tensor:
    """The mean loss of every window [tokens] of windows [count, tokens]."""
    found = []
    for ids in windows:
        logits = model(ids[None], use_cache=False).logits[0].float()
        found.append(torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).item())
    return torch.tensor(found, dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--text", required=True, nargs="+")
    parser.add_argument("--start", type=int, default=500_000)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--kind", choices=KINDS, default="awq")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = {}
    for file in options.text:
        text = Path(file).read_text(encoding="utf-8")[options.start : options.start + 8000 * options.windows]
        texts[file] = torch.tensor(tokenizer(text)["input_ids"][: options.windows * 512]).view(-1, 512)
    ids: list[int] = []
    for row in json.loads(Path(options.rows).read_text(encoding="utf-8")):
        asked = "\n".join(filter(None, (row["instruction"], row["input"])))
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
        ids += tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"]
        if len(ids) >= 32 * 256:
            break
    samples = torch.tensor(ids[: 32 * 256]).view(32, 256)

    def load():
        return AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()

    model = load()
    source = {file: losses(model, windows) for file, windows in texts.items()}
    row, start = find_layers(model), time.process_time()
    recipe = Recipe(**dict(bits=4, group=64, symmetric=False) | KINDS[options.kind])
    with tempfile.TemporaryDirectory() as work:
        job = LayerJob(
            model, row, samples, recipe, lambda *_: True, hub_names(model, row), Path(work), torch.device("cpu"),
            torch.bfloat16,
        )  # fmt: skip
        stored = [load_file(file) for file in quantize_layers(job, lambda done, total: None)]
    spent = time.process_time() - start
    model = load()
    state = model.state_dict()
    for tensors in stored:
        for name in {name.rpartition(".")[0] for name in tensors}:
            if f"{name}.weight" in tensors:
                state[f"{name}.weight"].copy_(tensors[f"{name}.weight"])
                continue
            parts = {part: tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales")}
            plain = unpack_awq(parts, torch.float32) if recipe.layout == "awq" else unpack_gptq(parts, torch.float32, 4)
            state[f"{name}.weight"].copy_(plain)
    print(f"{options.kind}: {spent:.0f} CPU-seconds to quantize")
    for file, windows in texts.items():
        found = losses(model, windows)
        gap = found - source[file]
        both = f"{source[file].mean().exp():.2f} -> {found.mean().exp():.2f}"
        print(f"{file}: {both}, loss {gap.mean():+.4f} ± {gap.std() / len(gap) ** 0.5:.4f}", flush=True)


if __name__ == "__main__":
    main()
