"""The command line as a user meets it: help at once, wrong input in one line with exit code 2, nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swift import __version__
from swift.cli import main
from swift.config.registry import COMMANDS, load
from swift.launch import torchrun_command

HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate", "numpy", "yaml", "rich", "matplotlib")


def swift(*argv, cwd=None, **env):
    return subprocess.run(
        [sys.executable, "-m", "swift", *argv],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), **env},
    )


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["sft", "--help"], ["list-models"], ["sft", "--modle", "x"]])
def test_nothing_heavy_is_imported_for_help_lists_and_mistakes(argv):
    code = (
        "import sys; from swift.cli import main; main(sys.argv[1:]);"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_help_lists_every_command_and_version_is_the_package_version(capsys):
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(name in page for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["swift", __version__]


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("command", [name for name, c in COMMANDS.items() if c.main])
def test_a_command_page_shows_every_option_with_its_type(command, lang, capsys, monkeypatch):
    monkeypatch.setenv("SWIFT_LANG", lang)
    assert main([command, "--help"]) == 0
    page = capsys.readouterr().out
    for spec in load(COMMANDS[command].config).specs().values():
        assert f"--{spec.name} {spec.type_name}" in page


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sft", "--modle", "x"], ["--modle", "did you mean --model"]),
        (["infer", "--lora_rank", "8"], ["--lora_rank", "swift sft"]),
        (["sft", "--lora_rank", "eight"], ["--lora_rank", "not a whole number"]),
        (["sft", "--learning_rate", "fast"], ["--learning_rate", "not a number"]),
        (["sft", "--torch_dtype", "bf61"], ["--torch_dtype", "bfloat16"]),
        (["sft", "--gradient_checkpointing", "maybe"], ["--gradient_checkpointing", "true"]),
        (["sft", "--columns", "{a"], ["--columns", "JSON"]),
        (["sft", "--use_galore", "true"], ["--use_galore", "not built yet"]),
        (["sft", "stray"], ["stray"]),
        (["sft", "--config", "missing.yaml"], ["missing.yaml"]),
        (["ifner"], ["swift infer"]),
        (["sft", "--lora_rank", "8", "9"], ["--lora_rank", "one value"]),
        (["sft", "--model"], ["--model", "needs a value"]),
    ],
)
def test_wrong_input_is_one_line_of_cause_and_cure(argv, words, tmp_path):
    done = swift(*argv, cwd=tmp_path, SWIFT_LANG="en")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    for word in words:
        assert word in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path):
    done = swift("sft", "--modle", "x", cwd=tmp_path, SWIFT_DEBUG="1")
    assert "Traceback" in done.stderr and done.returncode != 0


def test_several_processes_are_started_through_torchrun_and_only_once():
    env = {"NPROC_PER_NODE": "2", "MASTER_PORT": "29501"}
    command = torchrun_command(["sft", "--model", "m"], env)
    assert command[1:] == [
        "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29501", "-m", "swift", "sft",
        "--model", "m",
    ]  # fmt: skip
    assert torchrun_command(["sft"], {}) is None
    assert torchrun_command(["sft"], env | {"LOCAL_RANK": "0"}) is None
