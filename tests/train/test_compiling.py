"""--torch_compile: the same losses, on by itself where it pays, and off aloud where it can't work."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from swift.errors import MissingPackage, UsageError
from swift.train import compiling
from swift.train.lean import kernels
from swift.train.lean.kernels import Kernel
from swift.train.lean.path import Compiling, FastPath
from tests import tiny
from tests.train import support


@pytest.fixture(autouse=True)
def forgotten():
    torch._dynamo.reset()
    yield
    kernels.plain()


def decided(**values):
    return support.config(use_cpu=True, torch_dtype="float32", **values)


def test_it_goes_on_by_itself_only_where_it_pays(monkeypatch):
    monkeypatch.setattr(compiling, "missing_tools", lambda: None)
    long = compiling.COST_SECONDS / compiling.GAIN["float32"] + 1
    assert compiling.decide(decided(), long).training.torch_compile is True
    assert compiling.decide(decided(), long - 2).training.torch_compile is False
    assert compiling.decide(decided(fused_layers=False), long).training.torch_compile is False
    assert compiling.decide(decided(torch_compile=False), long).training.torch_compile is False
    assert compiling.decide(decided(torch_compile=True), 1.0).training.torch_compile is True
    monkeypatch.setattr(compiling, "missing_tools", lambda: ("no C++ compiler (g++)", "install it"))
    config = compiling.decide(decided(), long)
    assert not config.training.torch_compile and "no C++ compiler" in config.origins["torch_compile"].why


def test_what_is_missing_is_said_before_weights_are_read(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingPackage, match="no-such-compiler"):
        compiling.check(decided(torch_compile=True))
    compiling.check(decided())
    compiling.check(decided(torch_compile=True, torch_compile_backend="aot_eager"))
    assert decided(torch_compile_mode="default").training.torch_compile
    with pytest.raises(UsageError, match="nothing is compiled"):
        decided(torch_compile=False, torch_compile_mode="default")


@pytest.mark.parametrize(
    ("family", "fused", "settings"),
    [
        ("llama", True, {}),
        ("gemma2", True, {"sliding_window": 6}),
        pytest.param("qwen3", False, {}, marks=pytest.mark.slow),  # whole layers through the compiler: 24 CPU-seconds
    ],
)
def test_loss_and_gradients_are_those_of_transformers(family, fused, settings):
    backend = CompileCounterWithBackend("aot_eager")
    plain = support.lora(tiny.model(family, **settings))
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ours = copy.deepcopy(plain)
    path = FastPath(ours, fused_layers=fused, compiling=Compiling(backend))
    path.engage()
    made = []
    for seed in range(4):
        batch = support.collate(support.encoded_rows(3 + seed, low=4, high=24, seed=seed))
        batch.pop("row_ids")
        ours.zero_grad()
        plain.zero_grad()
        expected = plain(**batch).loss
        expected.backward()
        loss, _ = path.loss(ours, batch, path.label_count(batch), 0.0)
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), abs=2e-6)
        for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
            if b.grad is not None:
                torch.testing.assert_close(a.grad, b.grad, atol=3e-6, rtol=1e-3, msg=name)
        made.append(backend.frame_count)
    assert made[0] > 0 and made[-1] == made[0]  # other lengths need nothing new
    path.release()
    assert all(kernel.call is kernel.plain for kernel in Kernel.known)
    assert all(module._compiled_call_impl is None for module in ours.modules())


def test_a_compiler_that_fails_is_left_out_aloud(tmp_path, caplog):
    def broken(graph, inputs):
        raise RuntimeError("the compiler has crashed")

    rows = support.encoded_rows(8)
    cfg = support.config(max_steps=2, logging_steps=1)
    expected = support.trainer(tmp_path / "a", support.lora(tiny.model("llama")), rows, cfg=cfg)
    expected.train()
    trainer = support.trainer(
        tmp_path / "b", support.lora(tiny.model("llama")), rows, cfg=support.replaced(cfg, torch_compile=True)
    )
    assert trainer.fast_path.torch_compile
    trainer.fast_path.release()
    trainer.fast_path.compiling = Compiling(broken)
    trainer.fast_path.engage()
    with caplog.at_level(logging.WARNING, "swift"):
        trainer.train()
    assert "--torch_compile is off:" in caplog.text and "--fused_layers is off" not in caplog.text
    assert support.step_losses(trainer) == pytest.approx(support.step_losses(expected), abs=1e-6)


@pytest.mark.slow
def test_kernels_of_the_real_compiler_compute_the_same(tmp_path, monkeypatch):
    if compiling.missing_tools() is not None:
        pytest.skip("no compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    x, d = (torch.randn(37, 48, generator=generator) for _ in range(2))
    wide = torch.zeros(37, 20)
    weight = torch.rand(48, generator=generator)

    def results():
        y, scale = kernels.normed(x, weight, 1e-5, 1.0, True)
        out, d_gate, d_up = wide[:, :16].clone(), torch.zeros(37, 16), torch.zeros(37, 16)
        gate, up = x[:, :16], x[:, 16:32]
        kernels.gated(out, gate, up, "gelu_tanh")
        kernels.gated_backward(d_gate, d_up, d[:, :16], gate, up, "silu")
        return y, kernels.normed_backward(d, x, weight, scale, 1.0), out, d_gate, d_up

    expected = results()
    kernels.compiled(None, None)
    for found, wanted in zip(results(), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
