"""Environments: built, found, never half there. The packages are made here, so nothing comes from a network."""

import os
import zipfile

import pytest

from swift.advise import env
from swift.config.commands import EnvConfig
from swift.environments import RECORD, find, python_for
from swift.errors import ResourceError, UsageError


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("SWIFT_ENV_DIR", str(tmp_path / "envs"))
    return tmp_path / "envs"


def wheel(folder, name, version="1.0", code="VALUE = 7\n"):
    """A wheel, written by hand."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", code)
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return folder


def recipe(wheels, package, module=None):
    step = ("--no-index", "--find-links", str(wheels), package)
    return env.Recipe("vllm", "cpu", module or package, ("3.9", "3.99"), 0.001, (step,), "here")


def test_an_environment_is_found_when_it_is_complete_and_only_then(tmp_path, place, monkeypatch, capsys):
    wheels = wheel(wheel(tmp_path / "wheels", "zqgood"), "zqbroken", code="raise ImportError('no such driver')\n")
    config = EnvConfig().replace({"action": ("create", "vllm")}, "command line")

    monkeypatch.setattr(env, "recipe", lambda name, device: recipe(wheels, "zqmissing"))
    with pytest.raises(ResourceError, match="zqmissing") as caught:
        env.main(config)
    assert (place / "vllm.log").is_file() and str(place / "vllm.log") in str(caught.value)
    assert find("vllm") is None

    monkeypatch.setattr(env, "recipe", lambda name, device: recipe(wheels, "zqbroken"))
    with pytest.raises(ResourceError, match="no such driver"):
        env.main(config)
    assert find("vllm") is None
    env.main(EnvConfig())
    assert "unfinished" in capsys.readouterr().out
    with pytest.raises(UsageError, match="swift env create vllm"):
        python_for("vllm")

    monkeypatch.setattr(env, "recipe", lambda name, device: recipe(wheels, "zqgood"))
    assert env.main(config) == 0
    found = find("vllm")
    assert found.record["packages"] == {"zqgood": "1.0"}
    assert python_for("vllm") == found.python
    assert python_for("vllm", str(found.path)) == found.python

    before = (found.path / RECORD).stat().st_mtime_ns
    assert env.main(config) == 0  # it is there: nothing is done
    assert (found.path / RECORD).stat().st_mtime_ns == before
    assert env.main(EnvConfig().replace({"action": ("remove", "vllm")}, "command line")) == 0
    assert find("vllm") is None and not list(place.glob("vllm*"))


def test_one_made_elsewhere_is_found_without_the_option(tmp_path, place):
    elsewhere = tmp_path / "big disk" / "vllm"
    (elsewhere / "bin").mkdir(parents=True)
    (elsewhere / "bin" / "python").symlink_to(os.path.realpath("/bin/sh"))
    (elsewhere / "pyvenv.cfg").touch()
    (elsewhere / RECORD).write_text('{"packages": {"vllm": "1"}, "device": "cpu", "python": "3.11"}')
    env.link_from_home(elsewhere)
    assert find("vllm").python.exists()
    assert env.main(EnvConfig().replace({"action": ("remove", "vllm")}, "command line")) == 0
    assert not elsewhere.exists() and find("vllm") is None


def test_what_is_not_an_environment_is_not_removed(place):
    (place / "vllm").mkdir(parents=True)
    (place / "vllm" / "thesis.txt").write_text("years of work")
    with pytest.raises(ResourceError, match="not a Python environment"):
        env.main(EnvConfig().replace({"action": ("remove", "vllm")}, "command line"))
    assert (place / "vllm" / "thesis.txt").exists()


def test_two_creations_do_not_meet(place):
    place.mkdir()
    with (
        env.exclusively(place, "vllm"),
        pytest.raises(ResourceError, match="another process"),
        env.exclusively(place, "vllm"),
    ):
        pass


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("creat", "vllm"), "unknown action"),
        (("create",), "takes one name"),
        (("create", "vlm"), "no environment 'vlm' is known"),
        (("create", "sglang"), "no CPU wheel"),
        (("list", "vllm"), "unexpected argument"),
        (("remove", "vllm"), "no such environment"),
    ],
)
def test_mistakes(place, words, message, monkeypatch):
    monkeypatch.setattr(env, "device_here", lambda: "cpu")
    with pytest.raises(UsageError, match=message):
        env.main(EnvConfig().replace({"action": words}, "command line"))


def test_the_recipes_are_whole():
    for name in env.recipes():
        made = env.recipe(name, "cuda")
        assert made.install and made.module
        assert all(isinstance(word, str) for step in made.install for word in step)


def test_pips_settings_reach_uv():
    settings = {"index-url": "https://a/simple", "extra-index-url": "https://b https://c", "constraint": "/c.txt"}
    assert env.as_uv_options(settings) == [
        *("--default-index", "https://a/simple", "--index", "https://b", "--index", "https://c"),
        *("--constraints", "/c.txt"),
    ]
