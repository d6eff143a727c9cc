"""Prepacked linear layers compute what they did, keep their weights, and step aside where they must."""

import torch
from torch.nn.functional import linear

from swift.engines import prepack


def test_results_are_the_same_up_to_rounding_and_weights_stay():
    torch.manual_seed(0)
    kinds = [(torch.float32, 1e-4)]
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        kinds.append((torch.bfloat16, 0.05))
    for dtype, tolerance in kinds:
        layer = torch.nn.Linear(96, 160, dtype=dtype)
        weight = layer.weight.detach().clone()
        layer.forward = prepack._packed(layer, 2)
        with torch.no_grad():
            for shape in ((1, 96), (3, 96), (2, 5, 96), (1, 300, 96)):
                x = torch.randn(shape).to(dtype)
                torch.testing.assert_close(layer(x), linear(x, layer.weight, layer.bias), atol=tolerance, rtol=0.02)
        assert torch.equal(layer.weight, weight)


def test_with_gradients_it_is_the_plain_layer():
    layer = torch.nn.Linear(32, 32)
    layer.forward = prepack._packed(layer, 1)
    layer(torch.randn(4, 32)).sum().backward()
    assert layer.weight.grad is not None


def test_what_doesnt_pay_or_has_no_room_is_left_alone(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    assert prepack.prepack(model, free_bytes=1000) is None
    monkeypatch.setattr(prepack, "_measure", lambda layer: None)
    assert prepack.prepack(model, free_bytes=1 << 30) is None
    assert all("forward" not in vars(layer) for layer in model)


def test_a_packed_layer_that_computes_something_else_is_found(monkeypatch):
    layer = torch.nn.Linear(64, 64)
    plain = prepack._compute
    monkeypatch.setattr(prepack, "_compute", lambda *a: plain(*a) * 1.01)
    assert prepack._measure(layer) is None


def test_only_plain_linear_layers_are_changed(monkeypatch):
    class Mine(torch.nn.Linear):
        pass

    monkeypatch.setattr(prepack, "_measure", lambda layer: (2.0, 1))
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), Mine(64, 64), torch.nn.Linear(64, 64, dtype=torch.float64))
    assert "2.0 times" in prepack.prepack(model, free_bytes=1 << 30)
    assert ["forward" in vars(layer) for layer in model] == [True, False, False]
    assert prepack.prepack(model, free_bytes=1 << 30) is None  # once is enough


def test_layers_of_one_input_become_one_product():
    torch.manual_seed(0)
    for bias in (False, True):
        layers = [torch.nn.Linear(48, n, bias=bias) for n in (32, 16, 16)]
        together = prepack.packed_together(layers)
        for rows in (1, 5, 40):
            x = torch.randn(rows, 48)
            with torch.no_grad():
                torch.testing.assert_close(together(x), torch.cat([layer(x) for layer in layers], -1))
    assert prepack.packed_together([*layers, torch.nn.Linear(48, 16, bias=False)]) is None
    assert prepack.packed_together([*layers, torch.nn.Linear(48, 16, dtype=torch.float64)]) is None
