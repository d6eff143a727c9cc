"""Merging: the written directory, read by plain transformers, gives the logits of base + adapter; a wrong merge
leaves nothing.
"""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from swift import runs
from swift.cli import main
from swift.config.tuner import TunerOptions
from swift.errors import ExportError
from swift.export.proof import Prompt, answerable
from swift.models.load import add_special_tokens, resize_embeddings
from swift.models.tuners import apply_tuner
from tests import tiny, tiny_vlm

IDS = torch.tensor([[5, 9, 200, 31, 77, 12]])


def stored_in(path: Path, dtype: torch.dtype) -> Path:
    AutoModelForCausalLM.from_pretrained(path, dtype=dtype).save_pretrained(path)
    return path


def randomize(model, std=0.05):
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=std)
    return model


def adapter_of(base: Path, path: Path, model=None, **options) -> Path:
    model = model or AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = randomize(apply_tuner(model, TunerOptions(**options)))
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(path)
    return path


def export(*words) -> int:
    return main(["export", "--merge_lora", "true", *map(str, words)])


def plain(path, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


CASES = {
    "lora": ("llama", {}),
    "rslora": ("llama", dict(use_rslora=True)),
    "dora": ("qwen3", dict(use_dora=True)),
    "pissa": ("llama", dict(init_weights="pissa", lora_dropout=0.0)),
    "whole modules": ("llama", dict(modules_to_save=("lm_head", "embed_tokens"))),
    "experts": ("qwen3_moe", {}),
    "experts and router": ("qwen3_moe", dict(target_modules=("all-linear", "all-router"))),
    "gemma": ("gemma3_text", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_base_and_adapter(tmp_path, case, capfd):
    family, options = CASES[case]
    base = tiny.checkpoint(tmp_path / "base", family)
    adapter = adapter_of(base, tmp_path / "adapter", **options)
    assert export("--adapters", adapter, "--output_dir", tmp_path / "out") == 0, capfd.readouterr().err
    merged = plain(tmp_path / "out")
    tuned = PeftModel.from_pretrained(plain(base), adapter).eval()
    torch.testing.assert_close(merged(IDS).logits, tuned(IDS).logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(merged(IDS).logits, plain(base)(IDS).logits, atol=1e-3)
    own, new = (load_file(path / "model.safetensors") for path in (base, tmp_path / "out"))
    assert own.keys() == new.keys() and {t.dtype for t in new.values()} == {torch.float32}


def test_the_directory_is_whole_and_says_what_it_is(tmp_path):
    base = tiny.checkpoint(tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter")
    out = tmp_path / "out"
    assert export("--adapters", adapter, "--output_dir", out) == 0
    assert runs.verify_dir(out) == []
    tokenizer, theirs = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(base)
    assert tokenizer.chat_template == theirs.chat_template and tokenizer.get_vocab() == theirs.get_vocab()
    report = json.loads((out / "export_report.json").read_text())
    assert report["difference"] < 1e-4 < report["adapter_effect"] and report["agreement"] > 0.99
    assert "base_model" in (out / "README.md").read_text()
    assert main(["infer", "--model", str(out), "--prompt", "Who are you?", "--max_new_tokens", "2"]) == 0


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_an_fp8_base_becomes_plain_bfloat16(tmp_path, family):
    base = tiny.fp8_checkpoint(tmp_path / "base", family)
    adapter = adapter_of(base, tmp_path / "adapter", model=tiny.model(family, **sizes(base)))
    assert export("--adapters", adapter, "--output_dir", tmp_path / "out") == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "bfloat16"
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert tensors.keys() == {n for n in load_file(base / "model.safetensors") if not n.endswith("scale_inv")}
    stored = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    weights = load_file(adapter / "adapter_model.safetensors")
    a, b = (weights[f"base_model.model.{name.removesuffix('weight')}lora_{part}.weight"] for part in "AB")
    plain_base = tiny.dequantize_blocks(stored[name], stored[f"{name}_scale_inv"]).bfloat16().float()
    assert torch.equal(tensors[name], (plain_base + b @ a * 4).bfloat16())


def sizes(base: Path) -> dict:
    config = json.loads((base / "config.json").read_text())
    names = ("hidden_size", "intermediate_size", "head_dim", "moe_intermediate_size")
    return {name: config[name] for name in names if name in config}


def test_the_dtype_is_the_bases_and_rounding_is_shown(tmp_path):
    base = stored_in(tiny.checkpoint(tmp_path / "base"), torch.bfloat16)
    adapter = adapter_of(base, tmp_path / "adapter")
    assert export("--adapters", adapter, "--output_dir", tmp_path / "out") == 0
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    report = json.loads((tmp_path / "out" / "export_report.json").read_text())
    assert 0 < report["rounding"] == pytest.approx(report["difference"], rel=0.01)
    assert export("--adapters", adapter, "--output_dir", tmp_path / "wide", "--merge_dtype", "float32") == 0
    wide = json.loads((tmp_path / "wide" / "export_report.json").read_text())
    assert wide["rounding"] == 0 and wide["difference"] < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_a_half_precision_base_is_rounded_once_and_nothing_else(tmp_path, dtype):
    """Every tensor on disk is peft's own merge in float32, rounded to the dtype of the base: that alone is why logits
    differ from those of base and adapter."""
    base = stored_in(tiny.checkpoint(tmp_path / "base", "llama"), dtype)
    adapter = adapter_of(base, tmp_path / "adapter")
    assert export("--adapters", adapter, "--output_dir", tmp_path / "out") == 0
    expected = PeftModel.from_pretrained(plain(base), adapter).merge_and_unload()
    rounded = {name: tensor.to(dtype) for name, tensor in expected.state_dict().items()}
    merged = plain(tmp_path / "out", dtype).state_dict()
    assert merged.keys() == rounded.keys()
    assert not [name for name in merged if not torch.equal(merged[name], rounded[name])]
    assert any(not torch.equal(merged[name].float(), expected.state_dict()[name]) for name in merged)


def test_tied_embeddings_stay_tied(tmp_path):
    base = tiny.checkpoint(tmp_path / "base", "qwen3", tie_word_embeddings=True)
    adapter = adapter_of(base, tmp_path / "adapter")
    assert export("--adapters", adapter, "--output_dir", tmp_path / "out") == 0
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    assert plain(tmp_path / "out").config.tie_word_embeddings


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_are_part_of_the_merged_model(tmp_path, tied):
    base = tiny.checkpoint(tmp_path / "base", "qwen3", tie_word_embeddings=tied, vocab_size=len(tiny.tokenizer()))
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = add_special_tokens(tokenizer, ["<|a|>", "<|b|>"])
    model = plain(base)
    resize_embeddings(model, tokenizer)
    tuned = randomize(apply_tuner(model, TunerOptions(), new_token_ids=ids))
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    words = ["--adapters", tmp_path / "adapter", "--new_special_tokens", "<|a|>", "<|b|>"]
    assert export(*words, "--output_dir", tmp_path / "out") == 0
    prompt = torch.tensor([[5, 9, *ids, 31]])
    torch.testing.assert_close(
        plain(tmp_path / "out")(prompt).logits, tuned.eval()(prompt).logits, atol=1e-4, rtol=1e-4
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids(["<|a|>", "<|b|>"]) == ids


def test_two_adapters(tmp_path):
    base = tiny.checkpoint(tmp_path / "base")
    one = adapter_of(base, tmp_path / "1")
    two = adapter_of(base, tmp_path / "2", target_modules=("q_proj",), lora_rank=4)
    assert export("--adapters", one, two, "--output_dir", tmp_path / "out") == 0
    step = PeftModel.from_pretrained(plain(base), one).merge_and_unload()
    step = PeftModel.from_pretrained(step, two).merge_and_unload()
    torch.testing.assert_close(plain(tmp_path / "out")(IDS).logits, step(IDS).logits, atol=1e-4, rtol=1e-4)


def test_the_rows_given_are_compared_on(tmp_path, capfd):
    base = tiny.checkpoint(tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"query": "Who are you?", "response": "I am an assistant."}) + "\n")
    assert export("--adapters", adapter, "--output_dir", tmp_path / "out", "--dataset", rows) == 0
    assert json.loads((tmp_path / "out" / "export_report.json").read_text())["prompts"] == 1


@pytest.mark.parametrize("given", [True, False], ids=["rows with pictures", "noise"])
def test_what_the_eyes_alone_have_learned_is_compared_on_pictures(tmp_path, given, capfd):
    base = tiny_vlm.checkpoint(tmp_path / "base")
    options = LoraConfig(r=4, target_modules=r".*vision_tower.*\.[qv]_proj")
    tuned = get_peft_model(AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32), options)
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    randomize(tuned, 0.3).save_pretrained(tmp_path / "adapter")
    words = []
    if given:
        picture = tiny_vlm.picture(tmp_path / "a.png")
        row = {"query": "<image>What is this?", "response": "A cat.", "images": [picture]}
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
        words = ["--dataset", tmp_path / "rows.jsonl"]
    assert export("--adapters", tmp_path / "adapter", "--output_dir", tmp_path / "out", *words) == 0, capfd.readouterr()
    report = json.loads((tmp_path / "out" / "export_report.json").read_text())
    assert report["difference"] < 1e-4 < 1e-3 < report["adapter_effect"]
    assert report["prompts"] == 1 or not given
    expected = tuned.merge_and_unload().state_dict()
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    assert merged.keys() == expected.keys()
    assert not [name for name in merged if not torch.allclose(merged[name], expected[name], atol=1e-6)]


def test_a_model_that_refuses_text_alone_is_asked_about_pictures(tmp_path):
    kind, config, processor = tiny_vlm.llava()

    class NeedsPictures(kind):
        def forward(self, pixel_values, input_ids=None, **kwargs):
            return super().forward(input_ids, pixel_values, **kwargs)

    made = processor(text=["<image>What?"], images=[torch.zeros(3, 28, 28)], return_tensors="pt")
    text, seen = Prompt([5, 9, 200]), Prompt(made["input_ids"][0].tolist(), {"pixel_values": made["pixel_values"]})
    model = NeedsPictures(config).eval()
    assert answerable(model, [text, seen]) == [seen]
    assert answerable(kind(config).eval(), [text, seen]) == [text, seen]
    with pytest.raises(ExportError, match="takes no text alone"):
        answerable(model, [text])


def left_over(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if "out" in p.name or p.name.startswith(runs.STAGING_PREFIX)]


def test_an_untrained_adapter_is_refused(tmp_path, capfd):
    base = tiny.checkpoint(tmp_path / "base")
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules=["q_proj"], base_model_name_or_path=str(base))
    get_peft_model(plain(base), config).save_pretrained(tmp_path / "adapter")
    assert export("--adapters", tmp_path / "adapter", "--model", base, "--output_dir", tmp_path / "out") == 11
    assert "changed nothing" in capfd.readouterr().err and left_over(tmp_path) == []


def test_a_change_lost_in_rounding_is_refused(tmp_path, capfd):
    """Weights of +-0.75 have a bfloat16 step of 0.004; the adapter changes them by 0.0001."""
    base = tiny.checkpoint(tmp_path / "base")
    model = plain(base)
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data.sign_().mul_(0.75)
    model.bfloat16().save_pretrained(base)
    tuned = randomize(apply_tuner(plain(base), TunerOptions(target_modules=("q_proj",))), std=0.003)
    tuned.save_pretrained(tmp_path / "adapter")
    words = ["--adapters", tmp_path / "adapter", "--model", base, "--output_dir", tmp_path / "out"]
    assert export(*words) == 11
    assert "--merge_dtype float32" in capfd.readouterr().err and left_over(tmp_path) == []


@pytest.mark.parametrize("fault", ["merge", "save"])
def test_a_wrong_merge_or_save_is_caught(tmp_path, fault, monkeypatch, capfd):
    base = tiny.checkpoint(tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter")
    if fault == "merge":
        from peft.tuners.lora import LoraModel

        merging = LoraModel.merge_and_unload

        def spoiled(self, *args, **kwargs):
            model = merging(self, *args, **kwargs)
            model.model.layers[0].mlp.up_proj.weight.data.mul_(1.01)
            return model

        monkeypatch.setattr(LoraModel, "merge_and_unload", spoiled)
    else:
        from transformers import LlamaForCausalLM

        saving = LlamaForCausalLM.save_pretrained

        def spoiled(self, path, **kwargs):
            saving(self, path, **kwargs)
            saved = load_file(Path(path) / "model.safetensors")
            saved["model.norm.weight"] *= 1.01
            from safetensors.torch import save_file

            save_file(saved, Path(path) / "model.safetensors", metadata={"format": "pt"})

        monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", spoiled)
    assert export("--adapters", adapter, "--output_dir", tmp_path / "out") == 11
    assert "logits differ" in capfd.readouterr().err and left_over(tmp_path) == []


def test_another_base_is_refused(tmp_path, capfd):
    base = tiny.checkpoint(tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter")
    other = tiny.checkpoint(tmp_path / "other", hidden_size=128)
    assert export("--adapters", adapter, "--model", other, "--output_dir", tmp_path / "out") == 10
    err = capfd.readouterr().err
    assert str(base) in err and str(other) in err and left_over(tmp_path) == []


def test_a_used_directory_is_refused_unless_told(tmp_path, capfd):
    base = tiny.checkpoint(tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter")
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    words = ["--adapters", adapter, "--output_dir", out]
    assert export(*words) == 2
    assert export(*words, "--exist_ok", "true") == 2, "a directory that is no model is never replaced"
    assert (out / "precious.txt").read_text() == "mine"
    (out / "precious.txt").unlink()
    assert export(*words) == 0
    assert export(*words) == 2
    assert export(*words, "--exist_ok", "true") == 0
    assert export("--adapters", adapter, "--output_dir", base, "--exist_ok", "true") == 2


def test_dry_run_writes_nothing(tmp_path, capfd):
    base = stored_in(tiny.checkpoint(tmp_path / "base"), torch.bfloat16)
    adapter = adapter_of(base, tmp_path / "adapter")
    assert export("--adapters", adapter, "--dry_run", "true") == 0
    out = capfd.readouterr().out
    assert "adapter-merged" in out and "merge_dtype = bfloat16" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]


@pytest.mark.parametrize(
    "words, code, says",
    [
        (["--merge_lora", "true"], 2, "--adapters"),
        (["--model", "x", "--quant_method", "awq", "--quant_bits", "4"], 2, "no calibration rows"),
        ([], 2, "nothing to export"),
        (["--adapters", "nowhere", "--merge_lora", "true"], 3, "nowhere"),
        (["--adapters", "x", "--merge_lora", "true", "--loss_scale", "all"], 2, "leave out --loss_scale"),
        (["--adapters", "x", "--merge_lora", "true", "--dataset_num_proc", "2"], 2, "leave out --dataset_num_proc"),
        (["--adapters", "x", "--merge_lora", "true", "--split_dataset_ratio", "0.1"], 2, "name rows with --dataset"),
    ],
)
def test_what_can_not_be_exported(words, code, says, capfd):
    assert main(["export", *words]) == code
    assert says in capfd.readouterr().err


def test_infer_merges_in_memory(tmp_path, capfd):
    base = tiny.checkpoint(tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter")
    words = [
        "infer",
        "--adapters",
        str(adapter),
        "--prompt",
        "Who are you?",
        "--max_new_tokens",
        "8",
        "--temperature",
        "0",
    ]
    assert main(words) == 0
    beside = capfd.readouterr().out
    assert main([*words, "--merge_lora", "true"]) == 0
    assert capfd.readouterr().out == beside
    assert main(["infer", "--model", str(base), "--merge_lora", "true", "--prompt", "x"]) == 2
