"""`swift sft` as typed, on a tiny model: what is written, what is refused before anything is, and how it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from swift import runs
from swift.config.commands import SftConfig
from swift.models import imports
from swift.train import checkpoints
from swift.web.jobs import Job
from tests import tiny
from tests.train import support

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("models") / "tiny-llama")


def write_rows(path: Path, count: int = 12) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i} plus one?"},
                {"role": "assistant", "content": f"It is {i + 1}."},
            ]
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def sft(tmp_path, monkeypatch, model, type_words):
    """Type `swift sft` with a model, twelve rows and options; gives (exit code, stdout + stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWIFT_LANG", "en")
    write_rows(tmp_path / "rows.jsonl")

    def type_options(line: str = "", base: str | None = None, command: str = "sft"):
        base = (
            f"--model {model} --dataset rows.jsonl --output_dir out --report_to none --use_cpu true"
            if base is None
            else base
        )
        return type_words([command, *base.split(), *line.split()])

    return type_options


def only_run(folder: Path) -> Path:
    (run_dir,) = folder.glob("v*")
    return run_dir


QUICK = "--gradient_accumulation_steps 2 --logging_steps 1 --save_steps 2 --num_train_epochs 1 "


@pytest.mark.draws
def test_a_run_directory_holds_everything(sft, tmp_path, model):
    code, said = sft(QUICK + "--split_dataset_ratio 0.2 --system Hi")
    assert code == 0, said
    run_dir = only_run(tmp_path / "out")
    assert {p.name for p in run_dir.iterdir()} >= {
        "args.json",
        "manifest.json",
        "logging.jsonl",
        "images",
        "data_report.json",
        "data_report.html",
        "val_dataset.jsonl",
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-5",
    }
    assert not [p for p in run_dir.rglob(".*")], "no leftovers"
    args = json.loads((run_dir / "args.json").read_text())
    assert args["options"]["system"] == "Hi" and args["options"]["learning_rate"] == 1e-4
    assert args["model_path"] == str(model)
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["state"] == "finished" and manifest["last_checkpoint"] == "checkpoint-5"
    assert manifest["data"] == {"fingerprint": manifest["data"]["fingerprint"], "rows": 10, "validation_rows": 2}
    assert manifest["sittings"][0]["versions"]["torch"]
    for path in checkpoints.list_checkpoints(run_dir):
        assert runs.verify_dir(path) == []
        assert (path / "args.json").read_bytes() == (run_dir / "args.json").read_bytes()
    assert "swift infer --adapters out/" in said and "checkpoint-5" in said
    assert "12 rows read" in said and "eval_loss" in said


def test_a_run_that_a_page_started_tells_its_job_where_it_writes(sft, tmp_path, monkeypatch):
    monkeypatch.setenv(runs.JOB_VARIABLE, str(tmp_path))
    assert sft("--max_steps 1")[0] == 0
    job = Job("x", tmp_path, ("sft",), tmp_path, 0.0, "finished", 0, 1.0, None)
    assert job.told() == {"run": str(only_run(tmp_path / "out").resolve())}


def test_dry_run_says_why_and_writes_nothing(sft, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, said = sft("--dry_run true --eval_steps 3")
    assert code == 0 and sorted(tmp_path.rglob("*")) == before
    for line in (
        "learning_rate = 0.0001  # decided",
        "torch_dtype = ",
        "split_dataset_ratio = 0.01  # decided",
        "bf16 = ",
    ):
        assert line in said


@pytest.mark.parametrize(
    ("options", "base", "expected"),
    [
        ("", "--dataset rows.jsonl", ("no model", "--model")),
        ("", "--model MODEL", ("no data", "--dataset")),
        ("--dataset missing.jsonl", None, ("missing.jsonl",)),
        ("--dataset broken.jsonl", None, ("broken.jsonl",)),
        ("--strict true --dataset half.jsonl", None, ("half.jsonl:13", "--strict")),
        ("--model ./nowhere", None, ("nowhere",)),
        ("--lr_scheduler_type cosinus", None, ("cosinus", "cosine")),
        ("--optim adamm", None, ("adamm", "adamw_torch")),
        ("--target_modules nonsense", None, ("nonsense",)),
        ("--report_to swanlab", None, ("swanlab", "pip install")),
        ("--use_liger_kernel true", None, ("liger", "pip install")),
        ("--template nonsense", None, ("nonsense", "chatml")),
        ("--max_length 8", None, ("no row is left", "--max_length")),
        ("--fp16 true", None, ("--fp16", "accelerator")),
        ("--resume_from_checkpoint nowhere", None, ("nowhere", "auto")),
        ("--output_dir rows.jsonl/x", None, ("not a directory",)),
        ("--optim galore_adamw", None, ("galore", "--optim")),
        ("--adapters ADAPTER --lora_rank 3", None, ("--lora_rank", "fixed")),
        ('--lr_scheduler_kwargs {"nonsense":1}', None, ("nonsense", "--lr_scheduler_kwargs")),
    ],
)
def test_wrong_input_is_one_line_of_cause_and_one_of_cure(sft, tmp_path, model, options, base, expected):
    (tmp_path / "broken.jsonl").write_text("{not json\n")
    (tmp_path / "half.jsonl").write_text((tmp_path / "rows.jsonl").read_text() + '{"messages": 7}\n')
    before = sorted(p for p in tmp_path.rglob("*"))
    code, said = sft(options.replace("MODEL", str(model)), base and base.replace("MODEL", str(model)))
    assert code not in (0, 1) and "Traceback" not in said, said
    message = said[said.index("swift: ") :]
    assert all(word in message for word in expected), said
    assert len(message.strip().splitlines()) <= 3
    assert sorted(p for p in tmp_path.rglob("*")) == before, "nothing half-written"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written(sft, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, said = sft("--output_dir locked/runs")
    assert code == 7 and "locked" in said


def interrupted(sft, tmp_path, monkeypatch, options=""):
    """A run that was stopped after its second step."""
    from swift.train.callbacks import Schedule

    before = Schedule.on_step_end

    def stop_after_two(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return before(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Schedule, "on_step_end", stop_after_two)
        return sft(QUICK + options)


def test_ctrl_c_saves_says_how_to_go_on_and_the_end_is_the_same(sft, tmp_path, monkeypatch):
    code, said = interrupted(sft, tmp_path, monkeypatch, "--lora_dropout 0.1")
    assert code == 130
    run_dir = only_run(tmp_path / "out")
    assert f"swift sft --resume_from_checkpoint out/{run_dir.name}" in said
    assert json.loads((run_dir / "manifest.json").read_text())["state"] == "interrupted"
    code, said = sft(f"--resume_from_checkpoint out/{run_dir.name}", base="")
    assert code == 0 and "after step 2" in said
    assert only_run(tmp_path / "out") == run_dir, "it goes on in its directory"
    steps = [r["step"] for r in support.records(run_dir) if "loss" in r]
    assert steps == [1, 2, 3, 4, 5, 6]
    code, _ = sft(QUICK + "--lora_dropout 0.1 --output_dir whole")
    assert code == 0
    assert support.same_weights(run_dir / "checkpoint-6", only_run(tmp_path / "whole") / "checkpoint-6")
    sittings = json.loads((run_dir / "manifest.json").read_text())["sittings"]
    assert [s["from_step"] for s in sittings] == [0, 2]


def test_the_same_command_with_auto_starts_then_goes_on(sft, tmp_path, monkeypatch):
    code, said = interrupted(sft, tmp_path, monkeypatch, "--resume_from_checkpoint auto --tuner_type full")
    assert code == 130 and "starting from the beginning" in said
    code, said = sft(QUICK + "--resume_from_checkpoint auto --tuner_type full")
    assert code == 0 and "after step 2" in said
    run_dir = only_run(tmp_path / "out")
    sft(QUICK + "--tuner_type full --output_dir whole")
    assert support.same_weights(run_dir / "checkpoint-6", only_run(tmp_path / "whole") / "checkpoint-6")
    code, said = sft(QUICK + "--resume_from_checkpoint auto --tuner_type full")
    assert code == 0 and "nothing is left to train" in said


def test_going_on_with_other_rows_or_options_is_refused(sft, tmp_path, monkeypatch):
    interrupted(sft, tmp_path, monkeypatch)
    run_dir = only_run(tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*")}
    code, said = sft("--resume_from_checkpoint auto --learning_rate 1")
    assert code == 10 and "--learning_rate 1" in said
    code, said = sft("--resume_from_checkpoint auto --system other")
    assert code == 10 and "rows aren't those of the run" in said
    write_rows(tmp_path / "rows.jsonl", 13)
    code, said = sft("--resume_from_checkpoint auto")
    assert code == 10 and "rows aren't those of the run" in said
    assert {p: p.stat().st_mtime_ns for p in run_dir.rglob("*")} == before
    code, said = sft("--resume_from_checkpoint auto --resume_only_model true --learning_rate 1e-3 --num_train_epochs 1")
    assert code == 0, said
    assert len(list((tmp_path / "out").glob("v*"))) == 2, "other options are another run"


def test_a_truncated_newest_checkpoint_gives_the_one_before(sft, tmp_path):
    sft(QUICK)
    run_dir = only_run(tmp_path / "out")
    weights = run_dir / "checkpoint-6" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    code, said = sft("--resume_from_checkpoint auto")
    assert code == 0 and "checkpoint-6 is broken" in said and "checkpoint-4" in said
    assert weights.read_bytes() == whole


def test_an_adapter_trains_on(sft, tmp_path):
    sft(QUICK + "--lora_rank 4 --target_modules q_proj --learning_rate 1e-2")
    first = only_run(tmp_path / "out") / "checkpoint-6"
    code, said = sft(f"--adapters {first} --output_dir more --learning_rate 1e-3 --max_steps 1 --warmup_ratio 0")
    assert code == 0, said
    second = only_run(tmp_path / "more") / "checkpoint-1"
    a, b = support.weights(first), support.weights(second)
    assert a.keys() == b.keys() and "LoRA rank 4" in said
    largest = max((a[name] - b[name]).abs().max().item() for name in a)
    assert 0 < largest < 2e-3, "one small step away from where it was"


def test_a_model_without_template_gets_one_said_aloud_and_saved(sft, tmp_path, tmp_path_factory):
    from transformers import AutoTokenizer

    bare = tiny.checkpoint(tmp_path_factory.mktemp("bare") / "base-model", chat_template=None)
    base = f"--model {bare} --dataset rows.jsonl --output_dir out --report_to none --use_cpu true --max_steps 1"
    code, said = sft("--tuner_type full", base)
    assert code == 0 and "using chatml" in said
    checkpoint = only_run(tmp_path / "out") / "checkpoint-1"
    assert json.loads((checkpoint / "args.json").read_text())["options"]["template"] == "chatml"
    assert AutoTokenizer.from_pretrained(checkpoint).chat_template, (
        "a whole model carries the template it was trained with"
    )


def test_new_tokens_train_and_are_saved(sft, tmp_path):
    from transformers import AutoTokenizer

    code, said = sft("--new_special_tokens <a> <b> --max_steps 1 --save_steps 1")
    assert code == 0, said
    checkpoint = only_run(tmp_path / "out") / "checkpoint-1"
    assert "<b>" in AutoTokenizer.from_pretrained(checkpoint).get_vocab()
    code, said = sft("--resume_from_checkpoint auto --max_steps 3")
    assert code == 0, said


def test_continued_pretraining_learns_every_token_without_a_template(sft, tmp_path):
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": "The capital of France is Paris. " * 3}) + "\n" for _ in range(4))
    )
    base = "--dataset text.jsonl --output_dir out --report_to none --use_cpu true --max_steps 1"
    model = tiny.checkpoint(tmp_path / "m")
    code, said = sft("", f"--model {model} {base}", command="pt")
    assert code == 0, said
    report = json.loads((only_run(tmp_path / "out") / "data_report.json").read_text())
    assert report["train"]["trained_share"] > 0.9


def test_another_run_does_not_write_over_one(sft, tmp_path):
    assert sft("--max_steps 1 --add_version false")[0] == 0
    assert (tmp_path / "out" / "checkpoint-1").is_dir()
    code, said = sft("--max_steps 1 --add_version false")
    assert code == 2 and "holds a run already" in said
    assert sft("--resume_from_checkpoint auto --add_version false --max_steps 2")[0] == 0
    assert (tmp_path / "out" / "checkpoint-2").is_dir()


def test_a_full_disk_while_saving(tmp_path, model):
    """A limit on the size of files stands for the disk: the optimizer's state is the first to pass it."""
    import resource

    write_rows(tmp_path / "rows.jsonl")
    command = [
        sys.executable,
        "-m",
        "swift",
        "sft",
        "--model",
        str(model),
        "--dataset",
        "rows.jsonl",
        "--output_dir",
        "out",
    ]
    command += (QUICK + "--tuner_type full --torch_dtype float32 --report_to none --use_cpu true").split()

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000))

    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 7, done.stdout + done.stderr
    assert "can't write" in done.stderr and "Traceback" not in done.stderr
    run_dir = only_run(tmp_path / "out")
    assert checkpoints.list_checkpoints(run_dir) == [] and not list(run_dir.glob(".*"))


def test_ctrl_c_typed_at_a_real_process(tmp_path, model):
    write_rows(tmp_path / "rows.jsonl", 40)
    command = [
        sys.executable,
        "-m",
        "swift",
        "sft",
        "--model",
        str(model),
        "--dataset",
        "rows.jsonl",
        "--output_dir",
        "out",
    ]
    command += ["--report_to", "none", "--use_cpu", "true", "--logging_steps", "1", "--num_train_epochs", "500"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("step 3/"):
                break
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - start < 30, err
    assert "a checkpoint saved" in err and "go on with:" in out and "Traceback" not in err
    (checkpoint,) = checkpoints.list_checkpoints(only_run(tmp_path / "out"))
    assert runs.verify_dir(checkpoint) == []


def test_libraries_that_text_has_no_use_for_are_not_imported_and_can_be_later(tmp_path, model):
    """Libraries of these names stand first in the path; transformers and peft would import them."""
    names = ("datasets", "scipy", "sklearn", "bitsandbytes")
    for name in names:
        (tmp_path / f"{name}.py").write_text("")
    write_rows(tmp_path / "rows.jsonl")
    code = (
        "import sys; from swift.cli import main\n"
        f"line = 'sft --model {model} --dataset rows.jsonl --output_dir out --use_cpu true --max_steps 1'\n"
        "assert main(line.split()) == 0\n"
        f"assert 'peft' in sys.modules and not set({names}) & set(sys.modules)\n"
        "assert main('infer --adapters out --prompt hello --max_new_tokens 2 --temperature 0'.split()) == 0\n"
        f"assert 'peft' in sys.modules and not set({names}) & set(sys.modules)\n"
        "import datasets, scipy, sklearn, bitsandbytes"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_a_run_may_use_is_imported_as_ever():
    def unused(files=None, **values):
        return imports.unused(SftConfig().replace(values, "command line"), SimpleNamespace(config=files or {}))

    assert "bitsandbytes" in unused() and "scipy" in unused()
    for values in ({"quant_bits": 4}, {"optim": "paged_adamw_8bit"}, {"files": {"quantization_config": {}}}):
        assert "bitsandbytes" not in unused(**values) and "scipy" in unused(**values)
    assert not unused({"vision_config": {}}) and not unused({"auto_map": {}})
