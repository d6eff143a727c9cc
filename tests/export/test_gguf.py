"""GGUF files: plain transformers and (where a Python with llama-cpp-python is named in SWIFT_LLAMA_PYTHON) llama.cpp
read them as the model that they were made of.
"""

import json
import os
import subprocess
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from swift import runs
from swift.cli import main
from swift.export.gguf_blocks import FORMS, decode, encode
from tests import tiny
from tests.export.cut import cut_once
from tests.export.test_merge import adapter_of
from tests.export.test_quantize import IDS, SMALL, plain, rows_in

LLAMA_PYTHON = os.environ.get("SWIFT_LLAMA_PYTHON")
GEMMA = dict(query_pre_attn_scalar=16, bos_token_id=1, tie_word_embeddings=True, hidden_activation="gelu_pytorch_tanh")
# llama.cpp takes the embeddings of a Gemma for its head
SIZES = {
    "gemma": dict(bos_token_id=1, tie_word_embeddings=True, hidden_act="gelu_pytorch_tanh"),
    "gemma3_text": GEMMA,
    "gemma2": GEMMA | dict(attn_logit_softcapping=50.0),
    "qwen3": dict(head_dim=128),
    "qwen3_moe": dict(norm_topk_prob=True, head_dim=128),
    "mixtral": dict(num_local_experts=4, num_experts_per_tok=2),
    "smollm3": dict(num_hidden_layers=4),
}
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
WORDS = "Who are you? 12345 你好，法国的首都是巴黎。\n\n  def add(a, b):\n\treturn a + b  # it's"


def export(*words) -> int:
    return main(["export", "--quant_method", "gguf", *map(str, words)])


def exported(folder: Path, family: str, *words, **changes) -> tuple[Path, Path]:
    base = tiny.checkpoint(folder / "base", family, **(SIZES.get(family, {}) | changes))
    assert export("--model", base, "--output_dir", folder / "out", *words) == 0
    return base, next((folder / "out").glob("*.gguf"))


def by_transformers(file: Path) -> torch.Tensor:
    quantization = GgufConfig(dequantize=True)
    names = dict(gguf_file=file.name, dtype=torch.float32, quantization_config=quantization)
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(file.parent, **names).eval()(IDS).logits


def by_llama(file: Path, ids: list[int], text: str) -> tuple[torch.Tensor, list[int]]:
    """(logits at every position, ids of the text) of llama.cpp."""
    script = (
        "import sys, json; from llama_cpp import Llama\n"
        "file, ids, text = json.load(sys.stdin)\n"
        "llm = Llama(file, n_ctx=128, logits_all=True, verbose=False, n_threads=1)\n"
        "llm.eval(ids)\n"
        "words = llm.tokenize(text.encode(), add_bos=False, special=True)\n"
        "print(json.dumps([llm.scores[:len(ids)].tolist(), words]))\n"
    )
    sent = json.dumps([str(file), ids, text])
    done = subprocess.run([LLAMA_PYTHON, "-c", script], input=sent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    logits, words = json.loads(done.stdout)
    return torch.tensor(logits)[None], words


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_transformers_reads_the_source_back(tmp_path, family):
    base, file = exported(tmp_path, family, "--gguf_type", "F32")
    torch.testing.assert_close(by_transformers(file), plain(base), atol=1e-4, rtol=1e-4)
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    assert report["kind"] == "F32" and report["divergence"] < 1e-5 and report["quantized_share"] > 0.9
    assert runs.verify_dir(tmp_path / "out") == [] and not list(tmp_path.glob(f"{runs.STAGING_PREFIX}*"))
    theirs, own = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), AutoTokenizer.from_pretrained(base)
    assert theirs(WORDS)["input_ids"] == own(WORDS)["input_ids"]
    fields = gguf.GGUFReader(file).fields
    assert fields["tokenizer.chat_template"].contents() == own.chat_template
    assert fields["tokenizer.ggml.eos_token_id"].contents() == own.eos_token_id


@pytest.mark.parametrize("family", ["gemma", "smollm3", "qwen3_moe", "mixtral", "phi3"])
def test_every_architecture_comes_back_as_it_was(tmp_path, family):
    _, file = exported(tmp_path, family, "--gguf_type", "F32")
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    assert report["divergence"] < 1e-5 and report["agreement"] == 1 and report["quantized_share"] > 0.9


LLAMA_READS = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "scaled llama", "smollm3"]


@pytest.mark.skipif(not LLAMA_PYTHON, reason="SWIFT_LLAMA_PYTHON names no Python with llama-cpp-python")
@pytest.mark.parametrize("family", [*LLAMA_READS, "qwen3_moe", "mixtral", "phi3"])
def test_llama_cpp_computes_the_source(tmp_path, family):
    changes = dict(rope_parameters=LLAMA3 | dict(original_max_position_embeddings=4)) if " " in family else {}
    base, file = exported(tmp_path, family.split()[-1], "--gguf_type", "F32", **changes)
    logits, words = by_llama(file, IDS[0].tolist(), WORDS)
    torch.testing.assert_close(logits, plain(base), atol=2e-3, rtol=2e-3)
    assert torch.equal(logits.argmax(-1), plain(base).argmax(-1)), "the same greedy answer"
    assert words == AutoTokenizer.from_pretrained(base)(WORDS)["input_ids"]


@pytest.mark.parametrize("kind, far", [("Q8_0", 0.05), ("Q5_1", 0.2), ("Q4_0", 0.4), ("Q4_1", 0.4)])
def test_matrices_get_the_type_and_vectors_stay_plain(tmp_path, kind, far):
    base, file = exported(tmp_path, "qwen3", "--gguf_type", kind)
    stored = {t.name: t.tensor_type.name for t in gguf.GGUFReader(file).tensors}
    assert {stored[n] for n in stored if "norm" in n} == {"F32"}
    assert stored["token_embd.weight"] == stored["output.weight"] == "Q8_0"
    assert {t for n, t in stored.items() if n.startswith("blk") and "norm" not in n} == {kind}
    source = plain(base)
    assert 1e-4 < (by_transformers(file) - source).norm() / source.norm() < far


@pytest.mark.parametrize("kind", FORMS)
def test_blocks_are_read_by_gguf_and_as_near_as_its_own(kind):
    weight = torch.randn(24, 512, generator=torch.Generator().manual_seed(0)) * 0.05
    weight[0, :256], weight[1], weight[2] = 0, 1, weight[2].abs()
    back = torch.from_numpy(gguf.dequantize(encode(weight, kind).numpy(), kind))
    far = (back - weight).norm() / weight.norm()
    assert far < {4: 0.08, 5: 0.04, 6: 0.02}[FORMS[kind].bits]
    if kind.name[-1] != "K":
        theirs = gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind)
        assert far < 1.02 * (torch.from_numpy(theirs) - weight).norm() / weight.norm()


@pytest.mark.parametrize("kind", FORMS)
def test_blocks_for_known_inputs_change_the_output_less(kind):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 256, generator=draw) * 0.05
    inputs = torch.randn(512, 256, generator=draw) @ torch.randn(256, 256, generator=draw)
    moments = inputs.T @ inputs / len(inputs)
    blocks = [encode(weight, kind), encode(weight, kind, moments), encode(weight, kind, moments, 0.01)]
    errors = [((decode(block, kind) - weight) @ inputs.T).square().mean() for block in blocks]
    assert errors[2] < 0.8 * errors[1] and errors[1] < 1.2 * errors[0]


def test_k_types_mix_as_in_llama_cpp(tmp_path):
    base, file = exported(tmp_path, "llama", "--quant_bits", 4, hidden_size=256, intermediate_size=512, head_dim=64)
    stored = {t.name: t.tensor_type.name for t in gguf.GGUFReader(file).tensors}
    assert file.name == "out-Q4_K_M.gguf" and stored["blk.0.attn_q.weight"] == stored["blk.0.ffn_up.weight"] == "Q4_K"
    assert stored["blk.0.attn_v.weight"] == stored["blk.1.ffn_down.weight"] == "Q6_K"
    source = plain(base)
    assert 1e-4 < (by_transformers(file) - source).norm() / source.norm() < 0.2


@pytest.mark.parametrize("family, words", [("llama", ()), ("qwen3_moe", ("--quant_search", "true"))])
def test_rows_calibrate_and_a_cut_run_goes_on(tmp_path, family, words, monkeypatch):
    rows = ["--dataset", rows_in(tmp_path), *SMALL, *words, "--gguf_type", "Q4_0"]
    base, file = exported(tmp_path, family, *rows)
    stored = {t.name: t.tensor_type.name for t in gguf.GGUFReader(file).tensors}
    assert stored["blk.0.attn_q.weight"] == "Q4_0" and stored["token_embd.weight"] == "Q8_0"
    assert stored.get("blk.0.ffn_gate_inp.weight", "F32") == "F32"
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    assert 1e-7 < report["divergence"] < 0.05 and report["quantized_share"] > 0.5
    seen = cut_once(monkeypatch)
    again = ["--model", base, "--output_dir", tmp_path / "again" / "out", *rows]
    (tmp_path / "again").mkdir()
    assert export(*again) != 0 and not (tmp_path / "again" / "out").exists()
    assert export(*again) == 0 and seen == [0, 1, 1]
    assert (tmp_path / "again" / "out" / file.name).read_bytes() == file.read_bytes()


def test_rows_that_blocks_do_not_fit_stay_16_bit(tmp_path):
    _, file = exported(tmp_path, "llama", "--quant_bits", 8, intermediate_size=72)
    stored = {t.name: t.tensor_type.name for t in gguf.GGUFReader(file).tensors}
    assert stored["blk.0.ffn_down.weight"] == "F16" and stored["blk.0.ffn_up.weight"] == "Q8_0"


def test_an_adapter_is_merged_first(tmp_path):
    base = tiny.checkpoint(tmp_path / "base", "qwen3", head_dim=128)
    adapter = adapter_of(base, tmp_path / "adapter")
    assert export("--adapters", adapter, "--gguf_type", "F32", "--output_dir", tmp_path / "out") == 0
    assert (
        main(["export", "--merge_lora", "true", "--adapters", str(adapter), "--output_dir", str(tmp_path / "m")]) == 0
    )
    file = next((tmp_path / "out").glob("*.gguf"))
    torch.testing.assert_close(by_transformers(file), plain(tmp_path / "m"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "family, changes, words, says",
    [
        ("gemma", dict(tie_word_embeddings=False), (), "its head isn't its embeddings"),
        ("qwen3_moe", dict(norm_topk_prob=False), (), "norm_topk_prob"),
        ("smollm3", dict(no_rope_layers=[1, 0]), (), "every fourth layer"),
        ("bamba", dict(attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=16), (), "BambaForCausalLM"),
        ("llama", {}, ("--gguf_type", "Q3_K_M"), "Q4_K_S"),
        ("llama", {}, ("--quant_bits", 3), "--quant_bits 4, 5, 6, 8, 16, 32"),
        ("llama", {}, ("--quant_bits", 4, "--quant_search", "true"), "--dataset"),
        ("llama", {}, ("--gguf_type", "Q8_0", "--quant_bits", 4), "8 bits"),
        ("llama", {}, ("--group_size", 32), "--group_size"),
        ("llama", dict(rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=2.0)), (), "rope_type"),
        ("gemma3_text", dict(query_pre_attn_scalar=7), (), "query_pre_attn_scalar"),
    ],
)
def test_what_llama_cpp_would_not_follow_is_refused_before_any_work(tmp_path, capfd, family, changes, words, says):
    base = tiny.checkpoint(tmp_path / "base", family, **changes)
    assert export("--model", base, *words, "--output_dir", tmp_path / "out") == 2
    assert says in capfd.readouterr().err
    assert sorted(tmp_path.iterdir()) == [base]


def test_a_tokenizer_that_splits_in_another_way_is_refused(tmp_path, capfd):
    base = tiny.checkpoint(tmp_path / "base", "llama")
    parts = json.loads((base / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": r"\p{L}+"}, "behavior": "Isolated", "invert": False}
    parts["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, parts["pre_tokenizer"]]}
    (base / "tokenizer.json").write_text(json.dumps(parts))
    assert export("--model", base, "--output_dir", tmp_path / "out") == 2
    assert "llama.cpp has no splitting like its own" in capfd.readouterr().err


def go(template: str, system: str, messages: list[dict]) -> str:
    """What Ollama's template language (the part that is used) makes of a conversation."""
    text, first = template, True
    head, _, rest = text.partition("{{ range .Messages }}")
    body, _, tail = rest.rpartition("{{ end }}{{ end }}")
    user, _, reply = body.partition('{{ else if eq .Role "assistant" }}')
    user = user.removeprefix('{{ if eq .Role "user" }}')

    def fill(part: str, content: str = "") -> str:
        nonlocal first
        wanted = (("{{ if $first }}", first), ("{{ if $.System }}", bool(system)))
        for mark, holds in wanted:
            while mark in part:
                before, _, after = part.partition(mark)
                close = after.rindex("{{ end }}") if mark == "{{ if $first }}" else after.index("{{ end }}")
                part = before + (after[:close] if holds else "") + after[close + len("{{ end }}") :]
        if "{{ $first = false }}" in part:
            first = False
        for mark in ("{{ $first = false }}", "{{ $first := true }}"):
            part = part.replace(mark, "")
        return part.replace("{{ $.System }}", system).replace("{{ .Content }}", content)

    return fill(head) + "".join(fill(user if m["role"] == "user" else reply, m["content"]) for m in messages) + tail


GEMMA_LIKE = (
    "{% if messages[0]['role'] == 'system' %}{% set lead = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}"
    "{% else %}{% set lead = '' %}{% set turns = messages %}{% endif %}{% for m in turns %}"
    "{{ '<im>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' + (lead if loop.first else '') }}"
    "{{ m['content'] }}"
    "{{ '</im>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<im>model\n' }}{% endif %}"
)
DEFAULTED = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + tiny.CHATML
)
ENDED = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
NUMBERED = "{% for m in messages %}{{ loop.index ~ m['content'] + '\n' }}{% endfor %}"


@pytest.mark.parametrize("template", [tiny.CHATML, GEMMA_LIKE, DEFAULTED, ENDED])
def test_ollamas_template_gives_the_chat_templates_text(tmp_path, template):
    base = tiny.checkpoint(tmp_path / "base", chat_template=template)
    generation = {"eos_token_id": [2, 0], "temperature": 0.7, "do_sample": True}
    (base / "generation_config.json").write_text(json.dumps(generation))
    words = ["export", "--model", str(base), "--to_ollama", "true", "--output_dir", str(tmp_path / "out")]
    assert main(words) == 0
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert (tmp_path / "out" / text.splitlines()[0].removeprefix("FROM ./")).is_file()
    for line in ('stop "<|im_end|>"', 'stop "<|endoftext|>"', "temperature 0.7", "num_ctx 512"):
        assert f"PARAMETER {line}\n" in text
    found = text.partition('TEMPLATE """')[2].partition('"""')[0]
    default = text.partition('SYSTEM """')[2].partition('"""')[0]
    tokenizer = AutoTokenizer.from_pretrained(base)
    talk = [{"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"))]
    for system in ("", "Answer in verse."):
        messages = ([{"role": "system", "content": system}] if system else []) + talk
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert go(found, system or default, talk) == wanted


def test_a_chat_template_beyond_ollamas_language_is_left_out_aloud(tmp_path, capfd):
    base = tiny.checkpoint(tmp_path / "base", chat_template=NUMBERED)
    words = ["export", "--model", str(base), "--to_ollama", "true", "--output_dir", str(tmp_path / "out")]
    assert main(words) == 0
    assert "can't be written in Ollama's language" in capfd.readouterr().err
    assert "TEMPLATE" not in (tmp_path / "out" / "Modelfile").read_text()
