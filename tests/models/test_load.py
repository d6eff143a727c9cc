"""Plans and loading: the same numbers as plain transformers, every wrong checkpoint an error before it does harm."""

import json
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from swift.config.model import ModelOptions, QuantizationOptions
from swift.errors import MissingPackage, ModelFileError, ResourceError, UsageError
from swift.hub import check_model_files
from swift.models import plan as planning
from swift.models.device import Device, _cpu, pick_device
from swift.models.load import load_model, load_processor, load_tokenizer
from swift.models.plan import plan_loading
from tests import tiny

CPU = Device("cpu", "a CPU", bf16_fast=False)
IDS = torch.tensor([[5, 9, 200, 31]])


def plan(path, device=CPU, training=False, quant=None, **options):
    files = check_model_files(path)
    return plan_loading(ModelOptions(**options), QuantizationOptions(**(quant or {})), files, device, training)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("models") / "llama")


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe", "gemma3_text"])
def test_loads_as_transformers_does_without_the_network(tmp_path, family, monkeypatch, capfd):
    path = tiny.checkpoint(tmp_path / family, family)
    capfd.readouterr()
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("network"))
    model = load_model(path, plan(path))
    tokenizer = load_tokenizer(path)
    assert load_processor(path) is None
    assert capfd.readouterr() == ("", "")
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert torch.equal(model(IDS).logits, theirs(IDS).logits)
    assert tokenizer("Who are you?")["input_ids"]


def test_dtype_follows_the_device(llama):
    gpu = Device("cuda", "a GPU", bf16_fast=True)
    old = Device("cuda", "an old GPU", bf16_fast=False)
    assert CPU.dtype == "float32" and gpu.dtype == "bfloat16" and old.dtype == "float16"
    assert plan(llama).dtype == "float32"
    assert plan(llama, device=Device("cpu", "fast", bf16_fast=True)).dtype == "bfloat16"
    assert plan(llama, torch_dtype="float16").dtype == "float16"


def test_cpu_flags(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512_bf16\n\nprocessor\t: 1\n")
    assert _cpu(info) == Device("cpu", "Some CPU", bf16_fast=True)
    info.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2\n")
    assert not _cpu(info).bf16_fast
    assert pick_device(use_cpu=True).kind == "cpu"


def rewrite(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_weight_is_never_made_up(tmp_path):
    path = tiny.checkpoint(tmp_path / "m")
    rewrite(path, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelFileError, match="layers.1.mlp.up_proj"):
        load_model(path, plan(path))


def test_a_left_over_weight_is_an_error_unless_told(tmp_path, caplog):
    path = tiny.checkpoint(tmp_path / "m")
    rewrite(path, lambda tensors: tensors.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(4, 4)}))
    with pytest.raises(ModelFileError, match="layers.2"):
        load_model(path, plan(path))
    load_model(path, plan(path, check_model=False))


def test_a_weight_of_another_shape(tmp_path):
    path = tiny.checkpoint(tmp_path / "m")
    rewrite(path, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(4)}))
    with pytest.raises(ModelFileError):
        load_model(path, plan(path))


def test_own_code_needs_consent(tmp_path):
    path = tiny.checkpoint(tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match="--trust_remote_code true"):
        plan(path)


def test_too_large_for_the_memory(llama, monkeypatch):
    monkeypatch.setattr(Device, "free_memory", lambda self: 100_000)
    with pytest.raises(ResourceError, match="558 kB"):
        plan(llama, torch_dtype="float32")


def test_bfloat16_when_float32_does_not_fit(llama, monkeypatch):
    monkeypatch.setattr(Device, "free_memory", lambda self: 400_000)
    decided = plan(llama)
    assert decided.dtype == "bfloat16" and "float32 would need" in decided.reasons["dtype"]


def test_quantization_while_loading(llama, monkeypatch):
    bnb = {"quant_method": "bnb", "quant_bits": 8}
    monkeypatch.setenv("USE_BNB", "0")
    with pytest.raises(UsageError, match="USE_BNB"):
        plan(llama, quant=bnb)
    monkeypatch.delenv("USE_BNB")
    monkeypatch.setattr(planning.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match="pip install bitsandbytes"):
        plan(llama, quant=bnb)
    with pytest.raises(MissingPackage, match="pip install torchao"):
        plan(llama, quant={"quant_method": "torchao", "quant_bits": 8})


@pytest.mark.parametrize(
    "method, bits, fix",
    [
        ("hqq", 4, "--quant_method bnb"),
        ("quanto", 8, "--quant_method torchao"),
        ("awq", 4, "swift export"),
        (None, 4, "--quant_method bnb"),
        ("fp8", 4, "--quant_bits 8"),
        ("torchao", None, "--quant_bits 8 or --quant_bits 4"),
    ],
)
def test_what_can_not_quantize_while_loading_says_what_can(llama, method, bits, fix):
    with pytest.raises(UsageError) as refused:
        plan(llama, quant={"quant_method": method, "quant_bits": bits})
    assert fix in refused.value.fix


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_bitsandbytes_says_what_it_leaves(tmp_path, family, bits, caplog):
    pytest.importorskip("bitsandbytes")
    path = tiny.checkpoint(tmp_path / "m", family)
    with caplog.at_level("INFO", logger="swift"):
        model = load_model(path, plan(path, quant={"quant_method": "bnb", "quant_bits": bits}))
    assert model.is_quantized and torch.isfinite(model(IDS).logits).all()
    assert "MatMul8bitLt" not in caplog.text  # which would stand between the words of an answer
    assert ("experts" in caplog.text) == (family == "qwen3_moe")


def test_an_fp8_checkpoint_is_not_quantized_again(tmp_path):
    path = tiny.fp8_checkpoint(tmp_path / "m")
    with pytest.raises(UsageError, match="already quantized"):
        plan(path, quant={"quant_method": "bnb", "quant_bits": 8})


def test_flash_attention_falls_back_aloud(llama):
    decided = plan(llama, attn_impl="flash_attention_2")
    assert decided.attn_impl == "sdpa" and "needs a GPU" in decided.reasons["attn_impl"]


def test_positions_are_stretched_and_kept(llama, tmp_path):
    model = load_model(llama, plan(llama, rope_scaling="yarn", max_model_len=2048))
    assert model.config.rope_parameters["rope_type"] == "yarn"
    assert model.config.rope_parameters["factor"] == 4.0
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert again.config.max_position_embeddings == 2048
    with pytest.raises(UsageError, match="max_model_len"):
        plan(llama, rope_scaling="yarn")
    with pytest.raises(UsageError, match="512 positions"):
        plan(llama, max_model_len=4096)


def test_new_tokens_get_rows(tmp_path):
    llama = tiny.checkpoint(tmp_path / "m", vocab_size=len(tiny.tokenizer()))
    decided = plan(llama, new_special_tokens=("<|a|>", "<|b|>"))
    tokenizer = load_tokenizer(llama, new_special_tokens=decided.new_special_tokens)
    model = load_model(llama, decided)
    new = tokenizer.convert_tokens_to_ids(["<|a|>", "<|b|>"])
    assert len(tokenizer("<|a|><|b|>")["input_ids"]) == 2
    rows = model.get_input_embeddings().weight
    assert rows.shape[0] > max(new)
    own = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).get_input_embeddings().weight
    assert torch.equal(rows[: len(own)], own)
    torch.testing.assert_close(rows[len(own)], own.mean(0))


def test_a_tokenizer_always_pads(tmp_path):
    path = tiny.checkpoint(tmp_path / "m")
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(path).pad_token == "<|endoftext|>"
