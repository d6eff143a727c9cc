"""A checkpoint with its own code goes the way of all others, and only with the user's consent."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from swift.cli import main
from tests.models import remote_code


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return remote_code.checkpoint(tmp_path_factory.mktemp("remote") / "owl")


@pytest.fixture
def typed(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWIFT_LANG", "en")
    monkeypatch.setenv("SWIFT_CACHE", str(tmp_path / "cache"))
    rows = [{"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"It is {i}."}]}
            for i in range(4)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(line: str) -> tuple[int, str]:
        code = main(line.split())
        captured = capfd.readouterr()
        return code, captured.out + captured.err

    return run


def test_it_trains_merges_and_answers(base, typed, tmp_path):
    options = "--use_cpu true --report_to none --add_version false --max_steps 4 --logging_steps 1 --learning_rate 1e-2"
    code, said = typed(f"sft --model {base} --dataset rows.jsonl --output_dir out {options}")
    assert code != 0 and "--trust_remote_code true" in said
    assert not (tmp_path / "out").exists()
    consent = "--trust_remote_code true"
    code, said = typed(
        f"sft --model {base} --dataset rows.jsonl --output_dir out {options} {consent} --per_device_train_batch_size 4"
    )
    assert code == 0, said
    lines = (tmp_path / "out" / "logging.jsonl").read_text().splitlines()
    losses = [row["loss"] for line in lines if "loss" in (row := json.loads(line))]
    assert losses[-1] < losses[0]
    code, said = typed(f"export --adapters out/checkpoint-4 --merge_lora true --output_dir merged {consent}")
    assert code == 0, said
    plain = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(plain, "out/checkpoint-4").eval()
    merged = AutoModelForCausalLM.from_pretrained("merged", trust_remote_code=True, dtype=torch.float32).eval()
    ids = torch.arange(7, 40).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(tuned(ids).logits, merged(ids).logits, rtol=1e-3, atol=1e-4)
    code, said = typed(f"infer --model merged {consent} --prompt Hello --max_new_tokens 4 --temperature 0")
    assert code == 0, said


def test_the_engine_answers_as_generate_does(base):
    from swift.config.model import ModelOptions, QuantizationOptions
    from swift.engines.protocol import GenerationRequest, Sampling, generate_all
    from swift.engines.pt import PtEngine
    from swift.hub import check_model_files
    from swift.models.device import pick_device
    from swift.models.load import load_model, load_tokenizer
    from swift.models.plan import plan_loading

    options = ModelOptions(torch_dtype="float32", trust_remote_code=True)
    plan = plan_loading(options, QuantizationOptions(), check_model_files(base), pick_device(True), training=False)
    model = load_model(base, plan)
    prompts = [list(range(7, 12)), list(range(20, 60)), [99]]
    wanted = [
        model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, pad_token_id=0)[0, len(ids) :].tolist()
        for ids in prompts
    ]
    engine = PtEngine(model, load_tokenizer(base, trust_remote_code=True), max_batch_size=4)
    try:
        asked = [
            GenerationRequest(prompt_ids=ids, sampling=Sampling(max_new_tokens=6, temperature=0)) for ids in prompts
        ]
        given = [list(result.token_ids) for result in generate_all(engine, asked)]
    finally:
        engine.close()
    assert [ids[: len(g)] for ids, g in zip(wanted, given, strict=True)] == given and all(given)
