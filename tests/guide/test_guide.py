"""The command lines of the users' guide, as typed, over tiny random models in the guide's layouts.

The model directories carry the guide's names: a block-FP8 Qwen3 and a Qwen3 mixture of experts; the data set lies in
./datasets as ./models holds the models. Only `--max_steps`-like facts of scale come from the tiny size itself.
"""

import json
import re
import shlex

import pytest

from swift.cli import main
from tests import tiny

# Minutes of CPU on a machine without fast bfloat16: `make test-all` runs them.
pytestmark = pytest.mark.slow

ALPACA = [{"instruction": f"把数字 {n} 加一。", "input": "", "output": f"结果是 {n + 1}。"} for n in range(40)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guide")
    tiny.fp8_checkpoint(folder / "models" / "Qwen3-4B-Thinking-2507-FP8", "qwen3")
    tiny.checkpoint(folder / "models" / "Qwen3-30B-A3B-Thinking-2507", "qwen3_moe")
    data = folder / "datasets" / "AI-ModelScope" / "alpaca-gpt4-data-zh"
    data.mkdir(parents=True)
    (data / "train.json").write_text(json.dumps(ALPACA, ensure_ascii=False), encoding="utf-8")
    return folder


@pytest.fixture
def run(workplace, monkeypatch, capfd):
    """Type one line of the guide in the work place; returns (exit code, stdout, stderr)."""

    def type_line(line: str, stdin: str | None = None):
        monkeypatch.chdir(workplace)
        monkeypatch.setenv("SWIFT_LANG", "en")
        words = shlex.split(line.replace("\\\n", " "))
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            monkeypatch.setenv(name, value)
        assert words.pop(0) == "swift"
        if stdin is not None:
            import io

            monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = main(words)
        out = capfd.readouterr()
        return code, out.out, out.err

    return type_line


def newest_checkpoint(folder):
    runs = sorted(folder.glob("v*-*"), key=lambda p: p.stat().st_mtime)
    return max(runs[-1].glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))


INFER = """CUDA_VISIBLE_DEVICES=0 swift infer \\
    --model ./models/Qwen3-4B-Thinking-2507-FP8 \\
    --stream true --infer_backend pt --max_new_tokens 2048 --temperature 0.7"""
INFER_LARGE = """CUDA_VISIBLE_DEVICES=0 swift infer \\
    --model ./models/Qwen3-30B-A3B-Thinking-2507 \\
    --stream true --infer_backend pt --max_new_tokens 2048 --temperature 0.7 --load_in_8bit true"""
SFT = """CUDA_VISIBLE_DEVICES=0 swift sft \\
    --model ./models/Qwen3-4B-Thinking-2507-FP8 \\
    --dataset AI-ModelScope/alpaca-gpt4-data-zh#500 \\
    --train_type lora --torch_dtype bfloat16 --num_train_epochs 1 \\
    --per_device_train_batch_size 1 --learning_rate 1e-4 --lora_rank 8 --lora_alpha 32 \\
    --target_modules all-linear --gradient_accumulation_steps 16 \\
    --output_dir ./output/qwen3-4b-lora --max_length 2048 --system 'You are a helpful assistant.'"""
SFT_LARGE = """CUDA_VISIBLE_DEVICES=0 swift sft \\
    --model ./models/Qwen3-30B-A3B-Thinking-2507 \\
    --dataset AI-ModelScope/alpaca-gpt4-data-zh#500 \\
    --train_type lora --torch_dtype bfloat16 --load_in_8bit true --num_train_epochs 1 \\
    --per_device_train_batch_size 1 --learning_rate 1e-4 --lora_rank 8 --lora_alpha 32 \\
    --target_modules all-linear --gradient_accumulation_steps 32 \\
    --output_dir ./output/qwen3-30b-lora --max_length 2048"""


def test_inference_with_the_fp8_model(run):
    code, out, err = run(INFER, stdin="你好\nexit\n")
    assert code == 0, err


def test_inference_with_the_large_model_in_8_bit(run):
    pytest.importorskip("bitsandbytes")
    code, out, err = run(INFER_LARGE, stdin="你好\nexit\n")
    assert code == 0, err


def test_fine_tuning_then_infer_and_merge(run, workplace):
    code, out, err = run(SFT)
    assert code == 0, err
    checkpoint = newest_checkpoint(workplace / "output" / "qwen3-4b-lora")
    named = f"./{checkpoint.relative_to(workplace)}"
    code, out, err = run(
        f"CUDA_VISIBLE_DEVICES=0 swift infer --adapters {named} --stream true --temperature 0.7 --max_new_tokens 2048",
        stdin="你好\nexit\n",
    )
    assert code == 0, err
    code, out, err = run(
        f"CUDA_VISIBLE_DEVICES=0 swift export --adapters {named} --merge_lora true --output_dir ./merged_model"
    )
    assert code == 0, err
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(workplace / "merged_model")
    assert getattr(merged.config, "quantization_config", None) is None


def test_fine_tuning_the_large_model_in_8_bit(run, workplace):
    pytest.importorskip("bitsandbytes")
    code, out, err = run(SFT_LARGE)
    assert code == 0, err
    assert newest_checkpoint(workplace / "output" / "qwen3-30b-lora")


@pytest.mark.parametrize(
    "options",
    [
        "--lora_rank 8 --lora_alpha 32 --learning_rate 1e-4 --warmup_ratio 0.05",
        "--lora_rank 16 --lora_alpha 64 --learning_rate 5e-5 --warmup_ratio 0.1",
        "--dataloader_num_workers 4 --torch_dtype bfloat16",
        "--logging_dir ./logs --report_to tensorboard --save_steps 100 --eval_steps 100 --save_total_limit 3 "
        "--logging_steps 10",
    ],
)
def test_best_practice_options(run, options):
    code, out, err = run(
        "swift sft --model ./models/Qwen3-4B-Thinking-2507-FP8 --dataset 'AI-ModelScope/alpaca-gpt4-data-zh#20' "
        f"'swift/self-cognition#4' --model_name 小燕 Swallow --model_author 我们 us --max_steps 1 "
        f"--gradient_accumulation_steps 1 {options}"
    )
    assert code == 0, err


def test_quick_reference(run):
    code, out, err = run("swift infer --model ./models/Qwen3-4B-Thinking-2507-FP8", stdin="exit\n")
    assert code == 0, err
    for line in ("swift list-models", "swift list-datasets", "swift --help", "swift sft --help", "swift infer --help"):
        code, out, err = run(line)
        assert code == 0 and len(out.splitlines()) > 10, line


def test_a_data_set_by_its_short_name(run, workplace):
    (workplace / "datasets" / "alpaca.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ALPACA[:4]), encoding="utf-8"
    )
    code, out, err = run("swift sft --model ./models/Qwen3-4B-Thinking-2507-FP8 --dataset alpaca --num_train_epochs 1")
    assert code == 0, err
    assert re.search(r"\b4\b", out + err)
