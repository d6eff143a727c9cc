"""Plugins: the documented example runs as typed; what a plugin does wrong is said with its line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from swift import plugins
from swift.catalog import find_dataset, find_model, template_text
from swift.catalog.registered import REGISTERED
from swift.catalog.store import forget
from swift.cli import main
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch):
    """Every test begins and ends without plugins."""
    path = list(sys.path)

    def clear() -> None:
        REGISTERED.clear()
        plugins._callbacks.clear()
        plugins._loaded.clear()
        forget()

    clear()
    yield
    clear()
    sys.path[:] = path
    for name in [name for name in sys.modules if name.startswith(("swift_plugin_", "my_plugin"))]:
        del sys.modules[name]


@pytest.fixture
def typed(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWIFT_LANG", "en")

    def run(line: str) -> tuple[int, str]:
        code = main(line.split())
        captured = capfd.readouterr()
        return code, captured.out + captured.err

    return run


def documented(name: str) -> str:
    """The code block of docs/en/plugins.md that begins with `# name`."""
    page = (ROOT / "docs" / "en" / "plugins.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return next(block for block in blocks if block.startswith(f"# {name}"))


def test_the_documented_plugin_trains_a_model_of_its_own_on_its_data_with_its_template_and_callback(typed, tmp_path):
    Path("my_plugin.py").write_text(documented("my_plugin.py"), encoding="utf-8")
    model = tiny.checkpoint(tmp_path / "my-chat-1B", chat_template=None)
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "my_llama", "architectures": ["MyLlamaForCausalLM"]}
    (model / "config.json").write_text(json.dumps(config))
    line = "sft --model my-chat-1B --dataset my-rows --output_dir out --max_steps 2 --report_to none --use_cpu true"
    code, said = typed(f"{line} --external_plugins my_plugin.py --callbacks my-callback --add_version false")
    assert code == 0, said
    assert "step 2 is done" in said and "1 x left out by the plugin" in said
    assert "using my-template" in said  # the family's, found by the directory's name
    report = json.loads(Path("out/data_report.json").read_text())
    assert report["train"]["used"] == 4 and report["dropped"] == 1
    code, said = typed(
        "infer --adapters out/checkpoint-2 --custom_register_path my_plugin.py --prompt hi --max_new_tokens 2"
    )
    assert code == 0, said
    code, said = typed("list-models my-chat --external_plugins my_plugin.py --json true")
    assert code == 0 and json.loads(said)[0]["modelscope"] == "me/my-chat-1B"


def test_registered_names_are_found_and_win_over_the_catalogs(tmp_path):
    plugins.register_template("chatml", "{{ messages }}")
    plugins.register_models("mine", {"mine": {"architectures": ["X"], "models": "Qwen/Qwen3-4B\nme/other"}})
    plugins.register_dataset("rows", str(tmp_path / "rows.jsonl"), columns={"q": "query"})
    assert template_text("chatml") == "{{ messages }}"
    assert find_model("Qwen/Qwen3-4B").type.name == "mine" and find_model("me/other").type.family == "mine"
    assert find_dataset("rows").columns == {"q": "query"}


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "no such file"),
        ("import swift\n\n1 / 0\n", "my_plugin.py:3: the plugin can't be imported: ZeroDivisionError"),
        ("def f(:\n", "my_plugin.py:1: the plugin can't be imported: SyntaxError"),
        ("from swift import plugins\nplugins.register_dataset('x')\n", "give rows, or an id on a hub"),
        ("from swift import plugins\nplugins.register_models('x', {'title': 'y'})\n", "no model type in it"),
        (
            "from swift.plugins import *\nregister_template('a', '')\nregister_template('A', '')\n",
            "two plugins register",
        ),
    ],
)
def test_what_is_wrong_with_a_plugin_is_said_before_anything_is_done(typed, text, words):
    if text is not None:
        Path("my_plugin.py").write_text(text)
    code, said = typed("sft --model x --dataset y --external_plugins my_plugin.py")
    assert code == 2 and words in said


def test_an_unknown_callback_is_an_error_before_weights_are_read(typed, tmp_path):
    model = tiny.checkpoint(tmp_path / "model")
    Path("rows.jsonl").write_text(json.dumps({"query": "a", "response": "b"}))
    code, said = typed(f"sft --model {model} --dataset rows.jsonl --use_cpu true --callbacks nobody --output_dir out")
    assert code == 2 and "no plugin has registered a callback 'nobody'" in said and not Path("out").exists()


def test_an_installed_plugin_is_found_by_its_entry_point(typed, tmp_path, monkeypatch):
    (tmp_path / "my_plugin_pkg.py").write_text(
        "from swift.plugins import register_template\nregister_template('from-a-package', '{{ messages }}')\n"
    )
    info = tmp_path / "my_plugin_pkg-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin-pkg\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[swift.plugins]\nmine = my_plugin_pkg\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.load(())
    assert template_text("from-a-package") == "{{ messages }}"
