"""Environments broken on purpose, met by commands that run, and what the doctor needn't import."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys

import pytest

from swift import cli
from swift.advise import doctor
from swift.advise.checks import system
from swift.advise.checks.imports import finding_of
from swift.advise.checks.metadata import whole
from swift.config import registry
from tests.advise import broken


def recorded(place, name: str, version: str = "1.0") -> None:
    """A RECORD of the fake library, as pip writes it."""
    info = place / f"{name}-{version}.dist-info"
    files = [p for p in place.rglob("*") if p.is_file() and (name in p.parts or p.parent == info)]
    with (info / "RECORD").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([str(p.relative_to(place)), "", p.stat().st_size] for p in files if "pycache" not in str(p))
        writer.writerow([f"{info.name}/RECORD", "", ""])


@pytest.fixture
def libraries(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("triton", "outer_library", "wants_more"):
            del sys.modules[name]


def test_files_tell_that_a_library_is_whole(libraries):
    package = broken.library(libraries, "sound_one", "import triton.language")
    assert not whole("sound_one", "sound_one")  # without a record there is nothing to compare with
    recorded(libraries, "sound_one")
    assert whole("sound_one", "sound_one")
    (package / "__init__.py").write_text("x")
    assert not whole("sound_one", "sound_one")
    assert not whole("not_there_at_all", "not_there_at_all")


@pytest.mark.parametrize("damage", ["file", "requirement", "triton"])
def test_files_tell_when_it_has_to_be_tried(libraries, damage):
    code = "import triton.ops.blocksparse" if damage == "triton" else "x = 1"
    package = broken.library(libraries, f"odd_{damage}", code)
    broken.library(libraries, "triton", "")
    info = libraries / f"odd_{damage}-1.0.dist-info"
    if damage == "requirement":
        with (info / "METADATA").open("a") as file:
            file.write("Requires-Dist: numpy>=99\n")
    (package / "kernel.so").write_bytes(b"0123")
    recorded(libraries, f"odd_{damage}")
    if damage == "file":
        (package / "kernel.so").unlink()
    assert not whole(f"odd_{damage}", f"odd_{damage}")


def test_an_import_error_while_a_command_runs_prints_the_doctors_finding(libraries, monkeypatch, capsys):
    """The cause counts, also where a library raises an error of its own on top."""
    broken.library(libraries, "outer_library", "import triton.ops.matmul")
    broken.library(libraries, "triton", "")

    def run(config):
        try:
            import outer_library  # noqa: F401
        except ImportError as error:
            raise RuntimeError("Failed to import something (look up to see its traceback)") from error

    monkeypatch.setattr(registry, "load", lambda name, own=registry.load: run if name.endswith(":main") else own(name))
    for name in ("triton", "triton.ops", "outer_library"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert cli.main(["doctor"]) == 8
    error = capsys.readouterr().err
    assert "triton.ops" in error and "USE_BNB=0" in error and "Traceback" not in error and "swift doctor" in error


def test_what_is_missing_is_named_with_who_wants_it(libraries):
    broken.library(libraries, "wants_more", "import not_installed_here.part")
    with pytest.raises(ImportError) as caught:
        import wants_more  # noqa: F401
    finding = finding_of(caught.value)
    assert finding.what == "wants_more needs not_installed_here, which isn't installed"
    assert finding.fix == "pip install not-installed-here"


def test_use_bnb_0_keeps_every_library_from_importing_a_broken_one(libraries):
    broken.library(libraries, "bitsandbytes", "raise ImportError('libcudart.so.11.0: cannot open shared object file')")
    code = "import swift.cli as c; c.main(['list-datasets', 'none-such']); import importlib.util as u; "
    code += "print(u.find_spec('bitsandbytes') is not None)"  # what peft, transformers and accelerate ask
    for switch, there in (("0", "False"), ("off", "False"), ("1", "True")):
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env(libraries, switch))
        assert told.stdout.strip().endswith(there), told.stderr


def env(libraries, switch: str) -> dict[str, str]:
    import os

    path = f"{libraries}{os.pathsep}{broken.ROOT}"
    return {**os.environ, "PYTHONPATH": path, "USE_BNB": switch}


def test_flash_attention_that_was_typed_and_is_not_there_is_an_error(capsys):
    if shutil.which("nvidia-smi"):
        pytest.skip("flash-attn may be here")
    assert cli.main(["sft", "--model", "m", "--dataset", "d", "--use_flash_attn", "true"]) == 8
    assert "pip install flash-attn --no-build-isolation" in capsys.readouterr().err


def test_a_disk_that_is_full(tmp_path):
    """A file system of 1 MB, where this sandbox lets us make one."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("file systems can't be made here")
    try:
        found = {f.name: f for f in system.disks(str(place / "output"))}["disk (output)"]
        assert found.status == "fail" and "--output_dir" in found.fix
        argv = ["sft", "--model", "m", "--dataset", "d", "--output_dir", str(place)]
        done = broken.swift(*argv, cwd=tmp_path)
        assert done.returncode != 0 and "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_library_that_swift_needs_and_that_breaks_is_the_doctors_finding(tmp_path):
    broken.library(tmp_path, "peft", "from transformers import NoSuchCache", "0.21.2")
    found, code = broken.findings(libraries=tmp_path)
    assert code == 1 and "peft wants NoSuchCache of transformers" in found["peft"]["what"]
    assert found["peft"]["fix"] == "pip install -U peft transformers"


def test_what_may_not_be_read_is_said_by_the_doctor_and_while_running(monkeypatch, capsys):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "/somebody/else")

    monkeypatch.setattr(
        registry, "load", lambda name, own=registry.load: refuse if name.endswith(":main") else own(name)
    )
    monkeypatch.setenv("SWIFT_LANG", "zh")
    assert cli.main(["plan", "--model", "m"]) == 7
    error = capsys.readouterr().err
    assert "/somebody/else: 没有权限" in error and "ls -ld" in error and "Traceback" not in error
    (finding,) = doctor._readable(refuse)
    assert finding.status == "fail" and "/somebody/else: permission denied" in finding.what
