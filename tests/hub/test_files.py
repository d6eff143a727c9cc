"""Model and adapter directories that are whole pass; each way of breaking one is an error that names file and cure."""

from __future__ import annotations

import json
import os
import struct
import zipfile

import pytest

from swift.errors import ModelFileError
from swift.hub import check_adapter_files, check_model_files
from swift.hub.known import check_architecture
from tests.hub import handmade

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"


def refused(path, *words: str, check=check_model_files, **options) -> str:
    """The error's text; it must hold every one of `words` and say what to do."""
    with pytest.raises(ModelFileError) as caught:
        check(path, **options)
    assert caught.value.fix or "not supported" in caught.value.what, str(caught.value)
    for word in words:
        assert word in str(caught.value), f"{word!r} not in {caught.value}"
    return str(caught.value)


def test_whole_model(tmp_path):
    files = check_model_files(handmade.model(tmp_path / "m"))
    assert [f.name for f in files.weight_files] == ["model.safetensors"]
    assert files.parameters == 10 and files.dtypes == {"F32": 10}
    assert files.total_bytes == (tmp_path / "m/model.safetensors").stat().st_size
    assert files.config["model_type"] == "llama" and not files.is_gguf and files.quantization is None


def test_sharded_model_sums_over_shards(tmp_path):
    files = check_model_files(handmade.sharded(tmp_path / "m", shards=4))
    assert len(files.weight_files) == 4 and files.dtypes == {"BF16": 16}


def test_file_written_by_safetensors_itself(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    handmade.model(tmp_path)
    tensors = {
        "a": torch.zeros(3, 5),
        "b": torch.zeros(7, dtype=torch.bfloat16),
        "c": torch.zeros(0),
        "d": torch.tensor(1),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert check_model_files(tmp_path).dtypes == {"F32": 15, "BF16": 7, "I64": 1}


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_truncated_weights(tmp_path, cut):
    weights = handmade.safetensors()
    handmade.model(tmp_path, weights[:-cut])
    assert f"{cut} of 40 bytes" in refused(tmp_path, "model.safetensors", "cut short", "again")


@pytest.mark.parametrize("size", [0, 5, 8, 60])
def test_weights_cut_inside_the_header(tmp_path, size):
    handmade.model(tmp_path, handmade.safetensors()[:size])
    refused(tmp_path, "model.safetensors", "again")


def test_padded_weights(tmp_path):
    handmade.model(tmp_path, handmade.safetensors() + b"xx")
    refused(tmp_path, "2 bytes longer")


def test_no_safetensors_at_all(tmp_path):
    handmade.model(tmp_path, b"<html>please log in</html>" * 20)
    refused(tmp_path, "model.safetensors", "not a safetensors file")


@pytest.mark.parametrize("change", ["gap", "shape", "garbage"])
def test_inconsistent_header(tmp_path, change):
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    header["b"] = {"dtype": "F32", "shape": [2], "data_offsets": [12, 20] if change == "gap" else [8, 16]}
    if change == "shape":
        header["b"]["shape"] = [3]
    raw = b"{not json" if change == "garbage" else json.dumps(header).encode()
    handmade.model(tmp_path, struct.pack("<Q", len(raw)) + raw + b"\0" * 20)
    refused(tmp_path, "header")


def test_lfs_pointers_everywhere(tmp_path):
    for name in ("model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"):
        directory = handmade.model(tmp_path / name)
        (directory / name).write_bytes(LFS)
        refused(directory, name, "LFS pointer", "git lfs pull")


def test_missing_shard_is_named(tmp_path):
    handmade.sharded(tmp_path, 5)
    (tmp_path / "model-00003-of-00005.safetensors").unlink()
    refused(tmp_path, "missing shard model-00003-of-00005.safetensors", "4 of 5")


def test_missing_shard_without_index(tmp_path):
    handmade.sharded(tmp_path, 3)
    (tmp_path / "model.safetensors.index.json").unlink()
    refused(tmp_path, "model.safetensors.index.json is missing")
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    refused(tmp_path, "missing shard model-00002-of-00003.safetensors")


def test_tensor_that_is_not_in_its_shard(tmp_path):
    handmade.sharded(tmp_path, 2)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(handmade.safetensors({"other.weight": (2,)}))
    refused(tmp_path, "model-00002-of-00002.safetensors", "layer.2.weight")


def test_truncated_shard(tmp_path):
    handmade.sharded(tmp_path, 2)
    shard = tmp_path / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-3])
    refused(tmp_path, "model-00001-of-00002.safetensors", "cut short")


def test_broken_index(tmp_path):
    handmade.sharded(tmp_path, 2)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    refused(tmp_path, "index.json", "not valid JSON")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    refused(tmp_path, "weight_map")


def test_spare_shards_are_only_noted(tmp_path):
    handmade.sharded(tmp_path, 2)
    (tmp_path / "model-00001-of-00009.safetensors").write_bytes(handmade.safetensors())
    assert "model-00001-of-00009.safetensors" in check_model_files(tmp_path).notes[0]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", "", "empty file"),
        ("config.json", '{"a": 1', "not valid JSON"),
        ("config.json", "[]", "no JSON object"),
        ("tokenizer.json", None, "tokenizer is missing"),
        ("tokenizer.json", "", "empty file"),
        ("tokenizer.json", '{"version": "1.0", "model": {"vo', "not a whole JSON file"),
        ("tokenizer_config.json", None, "tokenizer_config.json is missing"),
        ("tokenizer_config.json", "{", "not valid JSON"),
        ("model.safetensors", None, "no weights"),
    ],
)
def test_missing_or_broken_file(tmp_path, name, content, words):
    handmade.model(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    refused(tmp_path, words)


def test_what_is_not_needed_is_not_asked_for(tmp_path):
    handmade.model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "tokenizer.json").unlink()
    files = check_model_files(tmp_path, need_weights=False, need_tokenizer=False)
    assert files.weight_files == () and files.total_bytes == 0


@pytest.mark.parametrize("names", [["tokenizer.model"], ["vocab.json", "merges.txt"], ["qwen.tiktoken"], ["vocab.txt"]])
def test_other_tokenizers(tmp_path, names):
    handmade.model(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    for name in names:
        (tmp_path / name).write_text("{}")
    check_model_files(tmp_path)


def test_half_a_bpe_tokenizer(tmp_path):
    handmade.model(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text("{}")
    refused(tmp_path, "merges.txt is missing")


def test_pytorch_bin(tmp_path):
    handmade.model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    whole = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("archive/data.pkl", "x" * 1000)
    assert check_model_files(tmp_path).weight_files == (whole,)
    whole.write_bytes(whole.read_bytes()[:-100])
    refused(tmp_path, "pytorch_model.bin", "cut short")
    whole.write_bytes(b"not found")
    refused(tmp_path, "not a PyTorch weight file")


def test_unfinished_download_and_other_formats(tmp_path):
    handmade.model(tmp_path / "a")
    (tmp_path / "a/model.safetensors").rename(tmp_path / "a/model.safetensors.incomplete")
    refused(tmp_path / "a", "unfinished download")
    handmade.model(tmp_path / "b")
    (tmp_path / "b/model.safetensors").rename(tmp_path / "b/tf_model.h5")
    refused(tmp_path / "b", "another format", "tf_model.h5")


def test_nested_model_empty_directory_and_no_directory(tmp_path):
    handmade.model(tmp_path / "models/inner")
    refused(tmp_path / "models", "inner", "--model")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty")
    refused(tmp_path / "none", "no such directory")


def test_adapter_is_not_a_model_and_a_model_no_adapter(tmp_path):
    adapter, model = handmade.adapter(tmp_path / "run/checkpoint-5"), handmade.model(tmp_path / "m")
    refused(adapter, "--adapters")
    refused(adapter.parent, "--adapters")
    refused(model, "--model", check=check_adapter_files)
    refused(adapter.parent, "checkpoint-5", check=check_adapter_files)


def test_whole_and_broken_adapter(tmp_path):
    path = handmade.adapter(tmp_path / "a")
    found = check_adapter_files(path)
    assert found.base_model == "org/base" and found.weight_file.name == "adapter_model.safetensors"
    weights = path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    refused(path, "adapter_model.safetensors", "cut short", check=check_adapter_files)
    weights.write_bytes(handmade.safetensors({}))
    refused(path, "no tensor", check=check_adapter_files)
    weights.unlink()
    refused(path, "adapter_model.safetensors is missing", check=check_adapter_files)
    (path / "adapter_config.json").write_text("{")
    refused(path, "adapter_config.json", check=check_adapter_files)


def test_dangling_link(tmp_path):
    handmade.model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs/gone")
    refused(tmp_path, "model.safetensors", "gone", "download the model again")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    handmade.model(tmp_path)
    (tmp_path / "model.safetensors").chmod(0)
    refused(tmp_path, "model.safetensors", "chmod u+r")


def test_quantization_config_is_reported(tmp_path):
    handmade.model(tmp_path)
    (tmp_path / "config.json").write_text('{"text_config": {"quantization_config": {"quant_method": "fp8"}}}')
    assert check_model_files(tmp_path).quantization == {"quant_method": "fp8"}


def test_gguf(tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(handmade.gguf())
    for given in (path, tmp_path):
        files = check_model_files(given)
        assert files.is_gguf and files.path == path and files.parameters == 10 and files.dtypes == {"F32": 10}
        assert files.gguf.metadata["general.architecture"] == "llama"
        assert files.gguf.metadata["tokenizer.ggml.tokens"] == 3
    for size in (2, 30, 200, len(handmade.gguf()) - 40):
        path.write_bytes(handmade.gguf()[:size])
        refused(path, "tiny.gguf", "again")


def test_gguf_agrees_with_the_gguf_package(tmp_path):
    gguf = pytest.importorskip("gguf")
    import numpy as np

    path = tmp_path / "w.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "b", "ü"])
    writer.add_tensor("x", np.zeros((4, 32), dtype=np.float16))
    writer.add_tensor("y", np.zeros((3,), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files = check_model_files(path)
    assert files.dtypes == {"F16": 128, "F32": 3} and files.gguf.metadata["llama.block_count"] == 2


def test_our_gguf_type_table_is_the_packages():
    constants = pytest.importorskip("gguf.constants")
    from swift.hub.gguf_header import TYPES

    for number, (name, per_block, size) in TYPES.items():
        kind = constants.GGMLQuantizationType(number)
        assert (kind.name, constants.GGML_QUANT_SIZES[kind]) == (name, (per_block, size))


def test_gguf_of_an_unknown_type(tmp_path):
    path = tmp_path / "new.gguf"
    name = b"model.norm.weight"
    at = handmade.gguf().index(name) + len(name) + 4 + 8  # dimensions: a count and one length
    whole = handmade.gguf()
    path.write_bytes(whole[:at] + struct.pack("<I", 999) + whole[at + 4 :])
    refused(path, "unknown type 999")


def test_several_gguf_files(tmp_path):
    for name in ("m-Q4_0.gguf", "m-Q8_0.gguf"):
        (tmp_path / name).write_bytes(handmade.gguf())
    refused(tmp_path, "m-Q4_0.gguf", "m-Q8_0.gguf", "pass one of them")


def test_split_gguf(tmp_path):
    for i in (1, 2):
        (tmp_path / f"m-0000{i}-of-00002.gguf").write_bytes(handmade.gguf({f"t{i}": (8,)}))
    assert check_model_files(tmp_path).parameters == 16
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    refused(tmp_path, "missing shard m-00002-of-00002.gguf")


def test_an_unknown_architecture_is_the_first_thing_said(tmp_path):
    """Before what else is missing; code beside the weights, or a class that a plugin registered, makes it known."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "foo_lm", "architectures": ["FooForCausalLM"]}))
    with pytest.raises(ModelFileError, match="transformers knows no model_type 'foo_lm'"):
        check_model_files(tmp_path)
    for other in ({"model_type": "foo_lm", "auto_map": {"AutoConfig": "foo.Config"}}, {"model_type": "qwen3"}):
        (tmp_path / "config.json").write_text(json.dumps(other))
        with pytest.raises(ModelFileError, match="the tokenizer is missing"):
            check_model_files(tmp_path)


def test_an_architecture_that_a_plugin_registered_is_known(tmp_path):
    from transformers import AutoConfig, PretrainedConfig

    class Registered(PretrainedConfig):
        model_type = "registered_by_a_test"

    AutoConfig.register("registered_by_a_test", Registered)
    check_architecture(tmp_path, {"model_type": "registered_by_a_test"})
