"""`swift doctor` in environments broken on purpose: it names the cause and the one command that mends it, and never
falls itself.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys

import pytest

from swift.advise.checks import packages, system
from swift.advise.checks.imports import explain, finding_of, try_import
from tests import tiny
from tests.advise import broken


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("model") / "tiny-llama")


def copy_of(model, place):
    return shutil.copytree(model, place / "copy")


def test_a_healthy_machine_exits_with_0_at_once(tmp_path):
    before = os.times().children_user
    found, code = broken.findings(cwd=tmp_path)
    assert os.times().children_user - before < 1.0
    assert code == 0, [f for f in found.values() if f["status"] == "fail"]
    assert {"Python", "packages", "torch", "memory", "bitsandbytes", "disk (output)"} <= set(found)


def test_nothing_heavy_is_imported(model):
    command = [sys.executable, "-c", broken.HEAVY_MEANS_1, "doctor", "--model", str(model)]
    assert (
        subprocess.run(command, capture_output=True, cwd=broken.ROOT, env={**os.environ, "USE_BNB": "0"}).returncode
        == 0
    )


def test_the_text_report_ends_with_a_count(tmp_path):
    done = broken.swift("doctor", cwd=tmp_path)
    assert done.returncode == 0 and "Python" in done.stdout
    assert done.stdout.strip().splitlines()[-1] == "all is well" or "to look at" in done.stdout


# ---- libraries ----


def test_bitsandbytes_older_than_triton(tmp_path):
    broken.library(tmp_path, "bitsandbytes", "import triton.ops.matmul_perf_model", "0.41.0")
    broken.library(tmp_path, "triton", "", "3.3.0")
    found, code = broken.findings(libraries=tmp_path, USE_BNB="1")
    assert code == 1
    bnb = found["bitsandbytes"]
    assert bnb["status"] == "fail" and "triton.ops" in bnb["what"]
    assert "pip install -U bitsandbytes triton" in bnb["fix"] and "USE_BNB=0" in bnb["fix"]


def test_use_bnb_0_switches_it_off_and_doesnt_import_it(tmp_path):
    broken.library(
        tmp_path, "bitsandbytes", f"open({str(tmp_path / 'imported')!r}, 'w').close(); raise ImportError('no')"
    )
    found, code = broken.findings(libraries=tmp_path, USE_BNB="0")
    assert code == 0 and found["bitsandbytes"]["status"] == "ok"
    assert "USE_BNB=0" in found["bitsandbytes"]["what"]
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", ["SIGSEGV"]),
        ("import os; os._exit(3)", ["exit code 3"]),
        (
            "raise ImportError('libcudart.so.11.0: cannot open shared object file: No such file or directory')",
            ["libcudart.so.11.0", "CUDA"],
        ),
        ("raise ImportError('a.so: undefined symbol: _ZN2at4_ops5zeros4callEv')", ["another version of PyTorch"]),
        ("raise OSError('/lib/libstdc++.so.6: version GLIBCXX_3.4.32 not found')", ["GLIBCXX_3.4.32"]),
        ("import einops_is_not_here", ["einops_is_not_here"]),
        (
            "print('noise ' * 100000); raise RuntimeError('CUDA Setup failed despite GPU being available')",
            ["no binary"],
        ),
        ("raise SystemExit(1)", ["SystemExit"]),
    ],
)
def test_a_library_that_breaks_while_imported_cannot_harm_the_doctor(code, words, tmp_path):
    broken.library(tmp_path, "bitsandbytes", code)
    found, exit_code = broken.findings(libraries=tmp_path, USE_BNB="1")
    assert exit_code == 1 and found["bitsandbytes"]["status"] == "fail"
    assert all(word in found["bitsandbytes"]["what"] for word in words)
    assert found["bitsandbytes"]["fix"]


def test_an_import_that_hangs_is_given_up(tmp_path, monkeypatch):
    broken.library(tmp_path, "hangs_forever", "import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = try_import("hangs_forever", timeout=1.5)
    assert "didn't end" in result.error


def test_flash_attn_built_for_another_torch_matters_where_there_is_a_gpu(tmp_path):
    broken.library(tmp_path, "flash_attn", "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _Z3foo')")
    without, code = broken.findings(libraries=tmp_path)
    assert code == 0 and without["flash-attn"]["status"] == "warn"
    assert "flash-attn" in without["flash-attn"]["fix"] and "--no-build-isolation" in without["flash-attn"]["fix"]


def test_versions_outside_the_ranges_are_named_with_the_line_that_mends_them(tmp_path):
    broken.library(tmp_path, "peft", "", "0.3.0")
    found, code = broken.findings(libraries=tmp_path)
    assert code == 1 and "0.3.0" in found["peft"]["what"]
    assert found["peft"]["fix"].startswith("pip install 'peft>=")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(
        packages, "requirements", lambda: ["not-there-at-all>=2", "packaging>=20", "later>=1; extra == 'x'"]
    )
    found = packages.core_versions()
    assert [(f.name, f.status, f.fix) for f in found] == [
        ("not-there-at-all", "fail", "pip install 'not-there-at-all>=2'")
    ]


def test_a_library_that_wants_another_version_of_a_shared_one(tmp_path):
    broken.library(tmp_path, "vllm", "")
    (tmp_path / "vllm-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm\nVersion: 1.0\nRequires-Dist: torch==1.2.3\nRequires-Dist: numpy\n"
        "Requires-Dist: peft==9; extra == 'x'\n"
    )
    found, _ = broken.findings(libraries=tmp_path)
    assert found["vllm"]["status"] == "warn" and "torch==1.2.3" in found["vllm"]["what"]
    assert "peft" not in found["vllm"]["what"] and "venv" in found["vllm"]["fix"]


# ---- torch and the driver ----


def test_a_cpu_build_of_torch_beside_a_gpu(tmp_path):
    broken.driver(tmp_path / "bin")
    broken.torch(tmp_path / "lib", "2.8.0+cpu", None)
    found, code = broken.findings(libraries=tmp_path / "lib", tools=tmp_path / "bin")
    assert code == 1 and "without CUDA" in found["torch"]["what"]
    assert "cu118" in found["torch"]["fix"] or "cu12" in found["torch"]["fix"]


def test_a_driver_older_than_torchs_cuda(tmp_path):
    broken.driver(tmp_path / "bin", cuda="12.2")
    broken.torch(tmp_path / "lib", "2.9.0+cu130", "13.0")
    found, code = broken.findings(libraries=tmp_path / "lib", tools=tmp_path / "bin")
    assert code == 1 and "CUDA 13.0" in found["torch"]["what"] and "12.2" in found["torch"]["what"]
    assert "/cu118" in found["torch"]["fix"]  # the newest build that 12.2 runs, of those there are


def test_a_gpu_without_kernels_in_this_torch(tmp_path):
    broken.driver(tmp_path / "bin")
    broken.torch(tmp_path / "lib", "2.9.0+cu128", "12.8", capability=(5, 2))
    found, code = broken.findings(libraries=tmp_path / "lib", tools=tmp_path / "bin")
    assert code == 1 and "5.2" in found["torch"]["what"]


def test_a_gpu_that_works_and_one_that_is_busy(tmp_path):
    broken.driver(tmp_path / "bin", gpus=[("NVIDIA L4", 23034, 22000), ("NVIDIA L4", 23034, 900)])
    broken.torch(tmp_path / "lib", "2.9.0+cu124", "12.4")
    found, _ = broken.findings(libraries=tmp_path / "lib", tools=tmp_path / "bin")
    assert found["torch"]["status"] == found["GPU 0"]["status"] == "ok"
    assert found["GPU 1"]["status"] == "warn" and "nvidia-smi" in found["GPU 1"]["fix"]
    assert "NCCL" in found


def test_torch_that_cannot_be_imported(tmp_path):
    broken.driver(tmp_path / "bin")
    broken.library(
        tmp_path / "lib", "torch", "raise ImportError('libcublas.so.12: cannot open shared object file: No such file')"
    )
    found, code = broken.findings(libraries=tmp_path / "lib", tools=tmp_path / "bin")
    assert code == 1 and "libcublas.so.12" in found["torch"]["what"]


# ---- the machine ----


def test_memory_and_disk_that_are_nearly_gone(monkeypatch, tmp_path):
    monkeypatch.setattr(system, "available_memory", lambda: 500_000_000)
    assert system.memory()[0].status == "fail"
    monkeypatch.setattr(system, "available_memory", lambda: 3_000_000_000)
    assert system.memory()[0].status == "warn"
    usage = type("Usage", (), {"free": 10_000_000, "total": 10**9})
    monkeypatch.setattr(system.shutil, "disk_usage", lambda path: usage)
    found = {f.name: f for f in system.disks(str(tmp_path / "not" / "yet"))}
    assert found["disk (output)"].status == "fail" and "--output_dir" in found["disk (output)"].fix


def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert system.disks(str(tmp_path / "file" / "x"))[0].status == "fail"
    monkeypatch.setattr(system.os, "access", lambda path, mode: False)
    finding = system.disks(str(tmp_path))[0]
    assert finding.status == "fail" and "can't be written" in finding.what


def test_few_open_files_and_little_shared_memory(monkeypatch, tmp_path):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    assert [f.status for f in system.limits()] == ["warn", "warn"]
    assert system.limits()[0].fix == "ulimit -n 4096"
    usage = type("Usage", (), {"total": 64 << 20})
    monkeypatch.setattr(system.shutil, "disk_usage", lambda path: usage)
    assert "--shm-size" in system.shared_memory(tmp_path)[0].fix


def test_the_network_is_asked_only_when_wanted(monkeypatch, tmp_path):
    found, _ = broken.findings()
    assert "ModelScope" not in found
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert [f.status for f in system.hubs(timeout=2)] == ["fail", "fail"]


# ---- models and data ----


def test_a_good_model_is_described_with_what_it_needs(model, tmp_path):
    found, code = broken.findings("--model", str(model), cwd=tmp_path)
    assert code == 0
    assert found["model files"]["status"] == found["model"]["status"] == "ok"
    assert "llama" in found["model"]["what"]
    assert all(word in found["model needs"]["what"] for word in ("inference", "LoRA", "full"))


def damage_truncated(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def damage_pointer(path):
    (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def damage_shard(path):
    (path / "model.safetensors").unlink()
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def damage_config(path):
    (path / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (damage_truncated, "cut short"),
        (damage_pointer, "Git LFS"),
        (damage_shard, "missing shard"),
        (damage_config, "JSON"),
    ],
)
def test_a_damaged_model_is_a_failure_with_a_cure(damage, word, model, tmp_path):
    copy = copy_of(model, tmp_path)
    damage(copy)
    found, code = broken.findings("--model", str(copy), cwd=tmp_path)
    assert code == 1
    assert (
        found["model files"]["status"] == "fail"
        and word in found["model files"]["what"]
        and found["model files"]["fix"]
    )


def test_a_path_that_is_not_there_and_an_adapter_without_weights(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    found, code = broken.findings("--model", "./nowhere", "--adapters", str(tmp_path / "adapter"), cwd=tmp_path)
    assert code == 1
    assert found["model"]["status"] == found["adapter files"]["status"] == "fail"


def test_data_sets_good_mixed_wrong_and_empty(tmp_path):
    conversation = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    rows = {
        "good": '{"query": "a", "response": "b"}\n' + json.dumps(conversation),
        "mixed": '{"query": "a", "response": "b"}\n{oops\n',
        "wrong": '{"colour": "red"}\n{"colour": "blue"}\n',
        "empty": "",
    }
    for name, text in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    words = [str(tmp_path / f"{name}.jsonl") for name in rows]
    found, code = broken.findings("--dataset", *words, cwd=tmp_path)
    assert code == 1
    status = {name: found[f"data set {word}"] for name, word in zip(rows, words, strict=True)}
    assert [status[name]["status"] for name in rows] == ["ok", "warn", "fail", "fail"]
    assert "broken JSON" in status["mixed"]["what"] and "mixed.jsonl:2" in status["mixed"]["what"]
    assert "--columns" in status["wrong"]["fix"]


# ---- the same words at run time ----


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (ModuleNotFoundError("No module named 'triton.ops'", name="triton.ops"), "triton.ops"),
        (RuntimeError("The NVIDIA driver on your system is too old; CUDA driver version is insufficient"), "driver"),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), "kernels"),
        (
            ImportError("cannot import name 'cached_download' from 'huggingface_hub' (x.py)", name="huggingface_hub"),
            "huggingface_hub",
        ),
    ],
)
def test_errors_met_while_running_get_the_doctors_words(error, word):
    finding = finding_of(error)
    assert word in finding.what and finding.fix


@pytest.mark.parametrize(
    ("code", "what", "fix"),
    [
        ("raise OSError('libcudart.so.12: cannot open shared object file: No such file')", "libcudart.so.12", "torch"),
        ("raise OSError('/x/_C.so: undefined symbol: _ZN3c10')", "another version of PyTorch", "odd-one"),
        ("import json\njson.no_such_part", "wants no_such_part of json", "pip install -U odd-one"),
        ("raise RuntimeError('operator x::nms does not exist')", "nms does not exist", "pip install"),
        ("import not_there_at_all", "odd_one needs not_there_at_all", "pip install not-there-at-all"),
    ],
)
def test_whatever_a_library_raises_while_it_is_imported_is_a_finding(tmp_path, monkeypatch, code, what, fix):
    broken.library(tmp_path, "odd_one", code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_one", raising=False)
    with pytest.raises(Exception) as caught:
        importlib.import_module("odd_one")
    found = finding_of(caught.value)
    assert found.name == "odd_one" and what in found.what and fix in found.fix


def test_what_is_missing_altogether_is_said_to_be_missing():
    found = finding_of(ModuleNotFoundError("No module named 'peft'", name="peft"))
    assert (found.name, found.what, found.fix) == ("peft", "it isn't installed", "pip install peft")


def test_other_errors_are_not_the_doctors_business():
    assert finding_of(ValueError("a wrong value")) is None
    assert finding_of(OSError(28, "No space left on device")) is None


def test_an_unknown_message_is_passed_on():
    what, fix = explain("flash_attn", "ImportError: something new")
    assert what == "ImportError: something new" and "flash-attn" in fix
