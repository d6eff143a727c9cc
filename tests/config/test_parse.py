"""Parsing: values as users type them, config files, aliases of older versions, and where each value came from."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift.config.commands import InferConfig, ListModelsConfig, SftConfig
from swift.config.parse import parse
from swift.config.record import explain, inherit, save_args
from swift.errors import NotBuiltYet, UsageError


def sft(*argv):
    return parse(SftConfig, list(argv)).config


def test_the_guides_fine_tuning_line():
    config = sft(
        *[
            "--model",
            "./models/Qwen3-4B-Thinking-2507-FP8",
            "--dataset",
            "AI-ModelScope/alpaca-gpt4-data-zh#500",
            "--train_type",
            "lora",
            "--torch_dtype",
            "bfloat16",
            "--num_train_epochs",
            "1",
            "--per_device_train_batch_size",
            "1",
            "--learning_rate",
            "1e-4",
            "--lora_rank",
            "8",
            "--lora_alpha",
            "32",
            "--target_modules",
            "all-linear",
            "--gradient_accumulation_steps",
            "16",
            "--output_dir",
            "./output/qwen3-4b-lora",
            "--max_length",
            "2048",
        ],
        "--system",
        "You are a helpful assistant.",
    )
    assert config.model.model == "./models/Qwen3-4B-Thinking-2507-FP8"
    assert config.data.dataset == ("AI-ModelScope/alpaca-gpt4-data-zh#500",)
    assert config.tuner.tuner_type == "lora"
    assert config.training.learning_rate == 1e-4
    assert config.training.gradient_accumulation_steps == 16
    assert config.chat.system == "You are a helpful assistant."


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--use_flash_attn", "true"], "attn_impl", "flash_attention_2"),
        (["--load_in_8bit", "true"], "quant_bits", 8),
        (["--load_in_4bit"], "quant_method", "bnb"),
        (["--load_in_4bit", "false"], "quant_method", None),
        (["--train_type", "full"], "tuner_type", "full"),
        (["--tuner_type", "full"], "tuner_type", "full"),
        (["--sft_type=full"], "tuner_type", "full"),
        (["--torch_dtype", "bf16"], "torch_dtype", "bfloat16"),
        (["--dataset", "a", "b#5", "c"], "dataset", ("a", "b#5", "c")),
        (["--dataset", "a", "--dataset", "b"], "dataset", ("a", "b")),
        (["--dataset", '["a", "b"]'], "dataset", ("a", "b")),
        (["--columns", '{"q": "query"}'], "columns", {"q": "query"}),
        (["--gradient-checkpointing", "false"], "gradient_checkpointing", False),
        (["--gradient_checkpointing"], "gradient_checkpointing", True),
        (["--max_steps", "-1"], "max_steps", -1),
        (["--lora_rank", "4", "--lora_rank", "16"], "lora_rank", 16),
        (["--system=--strange--"], "system", "--strange--"),
        (["--report_to", "none"], "report_to", ("none",)),
        (["--eval_strategy", "no"], "eval_strategy", "no"),
        (["--evaluation_strategy", "epoch"], "eval_strategy", "epoch"),
        (["--save_total_limit", "none"], "save_total_limit", None),
    ],
)
def test_values_as_typed(argv, name, value):
    assert sft(*argv).value(name) == value


def test_backend_names_of_older_versions():
    for word in ("pt", "transformers"):
        assert parse(InferConfig, ["--infer_backend", word]).config.engine.infer_backend == "pt"


def test_words_without_an_option_are_the_query_of_the_lists():
    config = parse(ListModelsConfig, ["qwen3", "thinking", "--modality", "image"], "query").config
    assert config.listing.query == ("qwen3", "thinking") and config.listing.modality == "image"


def test_off_is_fine_for_what_is_not_built_and_on_is_an_error():
    assert sft("--packing", "false", "--streaming", "false").data.dataset == ()
    assert sft("--safe_serialization", "true", "--lazy_tokenize", "false") == SftConfig()
    with pytest.raises(NotBuiltYet):
        sft("--use_galore", "true")
    with pytest.raises(NotBuiltYet):
        sft("--safe_serialization", "false")


def test_off_is_fine_for_what_other_commands_do():
    assert parse(InferConfig, ["--streaming", "false", "--lazy_tokenize", "false"]).config == InferConfig()
    for words in (["--streaming", "true"], ["--padding_free", "false"], ["--num_train_epochs", "0"]):
        with pytest.raises(UsageError, match="unknown option"):
            parse(InferConfig, words)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_config_file_env_and_precedence(tmp_path, suffix):
    file = tmp_path / f"run{suffix}"
    content = {
        "model": "m",
        "dataset": ["a", "b"],
        "learning_rate": "1e-4",
        "train_type": "full",
        "columns": {"q": "query"},
        "use_dora": True,
        "seed": None if suffix == ".never" else 7,
        "ENV": {"MY_VARIABLE": 3},
    }
    text = json.dumps(content)
    file.write_text(text if suffix == ".json" else "model: m\ndataset: [a, b]\nlearning_rate: 1e-4\ntrain_type: full\n"
                    "columns: {q: query}\nuse_dora: true\nseed: 7\nENV: {MY_VARIABLE: 3}\n")  # fmt: skip
    for argv in ([str(file), "--seed", "8"], ["--seed", "8", "--config", str(file)]):
        parsed = parse(SftConfig, argv)
        config = parsed.config
        assert (config.model.model, config.data.dataset, config.training.learning_rate) == ("m", ("a", "b"), 1e-4)
        assert (config.tuner.tuner_type, config.tuner.use_dora, config.training.seed) == ("full", True, 8)
        assert config.data.columns == {"q": "query"}
        assert parsed.env == {"MY_VARIABLE": "3"}
        assert config.origins["model"].source == "config file"
        assert config.origins["seed"].source == "command line"


def test_a_wrong_key_in_a_config_file_is_named(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("modle: m\n")
    with pytest.raises(UsageError, match="modle"):
        parse(SftConfig, [str(file)])


def test_sizes_are_a_number_and_a_unit():
    assert sft("--max_shard_size", "300 MB").saving.max_shard_size == "300 MB"
    for wrong in ("lots", "5", "1GiB", "-1GB"):
        with pytest.raises(UsageError, match="not possible(.|\n)*--max_shard_size 5GB"):
            sft(f"--max_shard_size={wrong}")


def test_explain_says_where_values_come_from():
    config = sft("--lora_rank", "4").decide("LoRA", learning_rate=1e-4)
    lines = dict(line.split(" = ", 1) for line in explain(config).splitlines() if " = " in line)
    assert lines["lora_rank"] == "4"
    assert lines["learning_rate"] == "0.0001  # decided: LoRA"
    assert lines["lora_alpha"].endswith("# default")


def test_args_json_round_trip_keeps_the_prompt_settings_and_no_secret(tmp_path):
    trained = sft("--model", "base", "--system", "S", "--hub_token", "secret", "--max_length", "128")
    save_args(tmp_path, "sft", trained, model_path=str(tmp_path))
    assert "secret" not in (tmp_path / "args.json").read_text()
    config = inherit(parse(InferConfig, ["--max_length", "64"]).config, tmp_path / "checkpoint-3")
    assert config.model.model == str(tmp_path)
    assert config.chat.system == "S"
    assert config.chat.max_length == 64  # typed: not overridden
    assert config.origins["system"].source == "args.json"


@given(
    st.text(min_size=1).filter(lambda s: not s.startswith("--")),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_any_text_and_number_comes_through(words, number, real):
    config = sft("--system=" + words, "--seed", str(number), f"--adam_epsilon={abs(real)!r}")
    assert config.chat.system == (None if words.lower() in ("none", "null") else words)
    assert config.training.seed == number
    assert config.training.adam_epsilon == abs(real)
