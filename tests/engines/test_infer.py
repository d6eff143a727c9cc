"""`swift infer` on tiny checkpoints, as typed: modes, adapters and their settings, refusals."""

import io
import json
import os
import subprocess
import sys

import pytest
import torch

from swift.cli import main
from tests import tiny


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("models") / "tiny", "llama")


@pytest.fixture(scope="module")
def adapter_dir(model_dir, tmp_path_factory):
    """A LoRA that changes the model much, saved by plain peft, with no args.json."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model_dir),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]),
    )
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    path = tmp_path_factory.mktemp("adapters") / "plain"
    model.save_pretrained(path)
    return path


def answer_of(model_dir, question, adapter=None, length=12, system=None):
    """Plain transformers and peft."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**ids, max_new_tokens=length, do_sample=False)[0, ids["input_ids"].shape[1] :]
    return tokenizer.decode([i for i in output.tolist() if i not in (tokenizer.eos_token_id, tokenizer.pad_token_id)])


@pytest.fixture
def infer(monkeypatch, capsys, tmp_path):
    """`swift infer ...` in a directory of its own; returns (exit code, stdout, stderr)."""

    def run(*words, stdin=""):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = main(["infer", *map(str, words)])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


SHORT = ("--max_new_tokens", "12", "--torch_dtype", "float32")


def test_one_question(infer, model_dir):
    code, out, err = infer("--model", model_dir, "--prompt", "Who are you?", *SHORT)
    assert (code, out) == (0, answer_of(model_dir, "Who are you?") + "\n"), err


def test_a_plain_peft_adapter_brings_its_base_and_changes_the_answer(infer, model_dir, adapter_dir):
    code, out, err = infer("--adapters", adapter_dir, "--prompt", "Who are you?", *SHORT)
    assert (code, out) == (0, answer_of(model_dir, "Who are you?", adapter_dir) + "\n"), err
    assert out != answer_of(model_dir, "Who are you?") + "\n"


def test_settings_come_from_args_json_unless_told_otherwise(infer, model_dir, adapter_dir, tmp_path):
    import shutil

    checkpoint = shutil.copytree(adapter_dir, tmp_path / "run" / "checkpoint-7")
    options = {"model": "nowhere/else", "system": "You are a cat.", "torch_dtype": "float32"}
    (checkpoint / "args.json").write_text(json.dumps({"model_path": str(model_dir), "options": options}))
    question = ("--prompt", "Who are you?", "--max_new_tokens", "12")
    wanted = answer_of(model_dir, "Who are you?", adapter_dir, system="You are a cat.")
    assert infer("--adapters", checkpoint, *question)[:2] == (0, wanted + "\n")
    code, out, err = infer("--adapters", tmp_path / "run", *question)
    assert (code, out) == (0, wanted + "\n")
    assert "checkpoint-7" in err
    plain = answer_of(model_dir, "Who are you?", adapter_dir)
    told = ("--load_args", "false", "--torch_dtype", "float32")
    assert infer("--adapters", checkpoint, *question, *told)[:2] == (0, plain + "\n")


def test_a_conversation_over_a_pipe_in_a_process_of_its_own(model_dir):
    command = [sys.executable, "-m", "swift", "infer", "--model", str(model_dir), *SHORT]
    done = subprocess.run(
        command,
        input="Who are you?\nclear\nWho are you?\n",
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ,
    )
    answer = answer_of(model_dir, "Who are you?")
    turn = f"<<< Who are you?\n{answer}\n{'-' * 50}\n"
    assert (done.returncode, done.stdout) == (0, f"{turn}<<< clear\n{turn}"), done.stderr


def test_rows_in_order_and_resumed_after_a_cut(infer, model_dir, tmp_path):
    texts = ["Who are you?", "What is one plus one?", "你好，你是谁？", "Write a story.", "x"]
    data, result = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    data.write_text("".join(json.dumps({"query": t, "response": t[::-1]}, ensure_ascii=False) + "\n" for t in texts))
    words = ("--model", model_dir, "--val_dataset", data, "--result_path", result, "--max_batch_size", "2", *SHORT)
    code, out, err = infer(*words)
    assert code == 0, err
    lines = [json.loads(line) for line in result.read_text().splitlines()]
    assert [line["response"] for line in lines] == [answer_of(model_dir, t) for t in texts]
    assert [line["labels"] for line in lines] == [t[::-1] for t in texts]
    assert [line["source"].rpartition(":")[2] for line in lines] == list("12345")
    whole = result.read_bytes()
    result.write_bytes(whole[: len(whole) // 2])
    code, out, err = infer(*words)
    assert code == 0 and result.read_bytes() == whole
    code, out, err = infer(*words, "--seed", "7")
    assert code == 5 and "other settings" in err and result.read_bytes() == whole


def test_the_result_file_lies_beside_the_checkpoint_else_in_result(infer, model_dir, adapter_dir, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"query": "hi"}\n')
    code, out, err = infer("--adapters", adapter_dir, "--val_dataset", "q.jsonl", *SHORT)
    assert code == 0 and len(list((adapter_dir / "infer_result").glob("*.jsonl"))) == 1
    code, out, err = infer("--model", model_dir, "--dataset", "q.jsonl", *SHORT)
    assert code == 0 and len(list((tmp_path / "result" / "tiny" / "infer_result").glob("*.jsonl"))) == 1


def test_without_a_chat_template_the_text_goes_in_as_it_is(infer, model_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    ids = tokenizer("The capital of", return_tensors="pt")
    output = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    wanted = tokenizer.decode(output).removesuffix(tokenizer.eos_token)
    words = ("--model", model_dir, "--prompt", "The capital of", "--use_chat_template", "false", *SHORT)
    assert infer(*words)[:2] == (0, wanted + "\n")


def test_a_long_prompt_is_refused_or_cut(infer, model_dir):
    words = ("--model", model_dir, "--prompt", "word " * 50, *SHORT, "--max_length", "20")
    code, out, err = infer(*words)
    assert code == 2 and "--max_length allows 20" in err
    assert infer(*words, "--truncation_strategy", "left")[0] == 0


def test_dry_run_says_what_was_decided_and_writes_nothing(infer, model_dir, tmp_path):
    (model_dir / "generation_config.json").rename(tmp_path / "kept.json")
    try:
        settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
        (model_dir / "generation_config.json").write_text(json.dumps(settings))
        code, out, err = infer("--model", model_dir, "--dry_run", "true", "--top_k", "5")
    finally:
        (tmp_path / "kept.json").rename(model_dir / "generation_config.json")
    assert code == 0
    assert "temperature = 0.6  # decided: generation_config.json" in out and "top_p = 0.95" in out
    assert "top_k = 5\n" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--infer_backend", "vllm", "--attn_impl", "eager"], 2, "no effect"),
        ([], 2, "--model"),
        (["--adapters", "no/such"], 2, "no such directory"),
        (["--model", "./no/such"], 3, "no such"),
        (["--model", "x", "--loss_scale", "all"], 2, "--loss_scale"),
        (["--model", "x", "--padding_side", "left"], 2, "--padding_side"),
        (["--model", "x", "--prompt", "a", "--val_dataset", "b"], 2, "--prompt"),
        (["--model", "x", "--result_path", "r.jsonl"], 2, "--result_path"),
        (["--model", "x", "--columns", '{"a": "query"}'], 2, "--columns"),
        (["--infer_backend", "fake", "--val_dataset", "no.jsonl"], 5, "no.jsonl"),
    ],
)
def test_wrong_words_are_one_cause_and_one_cure_and_write_nothing(infer, tmp_path, words, code, said):
    got, out, err = infer(*words)
    assert (got, out) == (code, ""), err
    assert said in err and "->" in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_arguments_and_files_are_checked_before_torch_is_imported():
    script = (
        "import sys; from swift.cli import main; code = main(sys.argv[1:]); "
        "print(code, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    for words in (["--model", "./no/such"], ["--infer_backend", "vllm"], ["--tempratur", "1"]):
        done = subprocess.run(
            [sys.executable, "-c", script, "infer", *words], capture_output=True, text=True, timeout=60
        )
        assert done.stdout.split(maxsplit=1)[1].strip() == "[]", done.stdout


def test_merging_first_gives_the_adapters_answer_and_writes_nothing(infer, model_dir, adapter_dir, tmp_path):
    import shutil

    checkpoint = shutil.copytree(adapter_dir, tmp_path / "checkpoint-3")
    words = ("--adapters", checkpoint, "--merge_lora", "true", "--prompt", "Who are you?", *SHORT)
    wanted = answer_of(model_dir, "Who are you?", adapter_dir) + "\n"
    code, out, err = infer(*words)
    assert (code, out) == (0, wanted), err
    assert sorted(p.name for p in tmp_path.glob("checkpoint*")) == ["checkpoint-3"]


def test_a_server_gets_a_merged_directory_that_is_of_these_weights(adapter_dir, tmp_path, caplog):
    import shutil

    from safetensors.torch import load_file, save_file

    from swift.config.commands import InferConfig
    from swift.engines import setup

    checkpoint = shutil.copytree(adapter_dir, tmp_path / "checkpoint-3")
    config = InferConfig().replace({"adapters": (str(checkpoint),), "merge_lora": True}, "command line")
    config, source = setup.find_source(config)
    merged = setup.merge_on_disk(config, source)[1]
    assert merged.files.path == tmp_path / "checkpoint-3-merged" and not merged.adapters
    made = (merged.files.path / "model.safetensors").stat().st_mtime_ns
    setup.merge_on_disk(config, source)
    assert (merged.files.path / "model.safetensors").stat().st_mtime_ns == made  # taken as it is
    weights = load_file(checkpoint / "adapter_model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, checkpoint / "adapter_model.safetensors")
    assert setup.stale(merged.files.path, source)
    setup.merge_on_disk(config, source)
    assert not setup.stale(merged.files.path, source)
    assert (merged.files.path / "model.safetensors").stat().st_mtime_ns != made
