"""vLLM (its CPU build, where `swift env create vllm` has been run) reads what the export writes."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from swift.cli import main
from swift.environments import find
from tests import tiny
from tests.export.test_quantize import SMALL, decoded, plain_directory, rows_in

SHAPE = dict(hidden_size=256, intermediate_size=512, head_dim=64)
PROMPTS = [[5, 9, 200, 31, 77, 12, 400, 3], [8, 8, 300, 41], [450, 7, 7, 99, 120, 33]]


def by_vllm(python: Path, folder: Path) -> list[list[int]]:
    script = Path(__file__).with_name("vllm_reads.py")
    command = [str(python), str(script), str(folder), json.dumps(PROMPTS), "bfloat16"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))[6:])


@torch.no_grad()
def behind_the_best(directory: Path, answers: list[list[int]]) -> float:
    """By how many nats, at most, plain transformers finds another token likelier than the one chosen."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    behind = []
    for ids, answer in zip(PROMPTS, answers, strict=True):
        steps = model(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
        behind += [(step.max() - step[token]).item() for step, token in zip(steps, answer, strict=True)]
    return max(behind)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["awq", "gptq", "fp8"])
def test_vllm_answers_as_the_weights_say(tmp_path, method):
    """Random weights, so the best tokens are near each other: within what bfloat16 leaves open."""
    environment = find("vllm")
    if environment is None:
        pytest.skip("there is no environment for vLLM: swift env create vllm")
    base, out = tiny.checkpoint(tmp_path / "base", "qwen3", **SHAPE), tmp_path / "out"
    words = ["--model", base, "--quant_method", method, "--output_dir", out]
    words += ["--dataset", rows_in(tmp_path), *SMALL, "--group_size", 128] if method != "fp8" else []
    assert main(["export", *map(str, words)]) == 0
    answers = by_vllm(environment.python, out)
    same = out if method == "fp8" else plain_directory(tmp_path / "plain", out, decoded(out)[0])
    assert behind_the_best(same, answers) < 0.03
    assert behind_the_best(tmp_path / "base", answers) < 0.6, "near the source too"
