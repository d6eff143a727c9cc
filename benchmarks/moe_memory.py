"""Memory and speed of a mixture of experts (the shape of Qwen3-MoE, about 1 GB in bfloat16, random weights) in 16, 8
and 4 bits: weights, peak while loading, peak of two LoRA steps over all layers and experts, decoding.

    python benchmarks/moe_memory.py [--dir DIRECTORY] [--layers 20]

Each measurement is a process of its own. Memory is anonymous memory beyond what the process had before loading: pages
of the checkpoint that are mapped from disk don't count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) * 1024


class Peak:
    """The largest anonymous memory within the block, beyond that at its start."""

    def __enter__(self) -> Peak:
        self.start, self.bytes, self._stop = anonymous(), 0, threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, anonymous() - self.start)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watch.join()


def build(directory: Path, layers: int) -> None:
    from tests import tiny

    shape = dict(hidden_size=512, moe_intermediate_size=256, intermediate_size=1024, num_experts=64, head_dim=64)
    shape |= dict(num_experts_per_tok=8, num_attention_heads=8, num_key_value_heads=4, num_hidden_layers=layers)
    directory.mkdir(parents=True, exist_ok=True)
    tiny.model("qwen3_moe", **shape).bfloat16().save_pretrained(directory)
    tiny.tokenizer().save_pretrained(directory)


def measure(directory: Path, bits: int, train: bool) -> dict:
    import torch

    from swift.config.model import ModelOptions, QuantizationOptions
    from swift.config.tuner import TunerOptions
    from swift.hub import check_model_files
    from swift.models.device import pick_device
    from swift.models.load import load_model
    from swift.models.plan import plan_loading
    from swift.models.quantized import weight_bytes
    from swift.models.tuners import apply_tuner

    torch.set_num_threads(1)
    quant = QuantizationOptions(quant_method="bnb", quant_bits=bits) if bits < 16 else QuantizationOptions()
    files = check_model_files(directory)
    plan = plan_loading(ModelOptions(torch_dtype="bfloat16"), quant, files, pick_device(True), training=True)
    start = time.process_time()
    with Peak() as loading:
        model = load_model(directory, plan)
    found = {"bits": bits, "load CPU s": time.process_time() - start, "load peak": loading.bytes}
    found["weights"] = weight_bytes(model)
    ids = torch.arange(7, 71).unsqueeze(0)
    with torch.no_grad():
        start = time.process_time()
        model.generate(ids[:, :16], max_new_tokens=16, min_new_tokens=16, do_sample=False)
        found["decode tok/CPU s"] = 16 / (time.process_time() - start)
    if not train:
        return found | {"step CPU s": 0.0, "step peak": 0, "losses": []}
    tuned = apply_tuner(model, TunerOptions(lora_dropout=0.0)).train()
    tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    losses, start = [], time.process_time()
    with Peak() as training:
        for _ in range(2):
            loss = tuned(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return found | {"step CPU s": (time.process_time() - start) / 2, "step peak": training.bytes, "losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--bits", type=int)
    parser.add_argument("--load_only", action="store_true", help="no training steps")
    options = parser.parse_args()
    if options.bits:
        print(json.dumps(measure(options.dir, options.bits, not options.load_only)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        directory = options.dir or Path(scratch) / "model"
        if not (directory / "config.json").is_file():
            build(directory, options.layers)
        print("| bits | weights | load peak | step peak | load CPU s | step CPU s | decode tok/CPU s | losses |")
        print("|---|---|---|---|---|---|---|---|")
        for bits in (16, 8, 4):
            command = [sys.executable, __file__, "--dir", str(directory), "--bits", str(bits)]
            command += ["--load_only"] * options.load_only
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
            mega = [f"{found[key] / 2**20:.0f} MiB" for key in ("weights", "load peak", "step peak")]
            rest = [f"{found[key]:.1f}" for key in ("load CPU s", "step CPU s", "decode tok/CPU s")]
            print(
                f"| {' | '.join([str(bits), *mega, *rest, ' '.join(f'{x:.3f}' for x in found['losses'])])} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
