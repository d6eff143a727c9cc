"""Which device is picked, and what is at home on it, with stubs in place of cards that aren't here."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from swift.config.model import ModelOptions
from swift.errors import UsageError
from swift.models import device as devices
from swift.models import placement
from swift.models.device import Device, pick_device
from swift.models.plan import _attention
from swift.train.random_state import RandomState


class Card(types.ModuleType):
    """A stub of torch.cuda, torch.npu or torch.xpu with two cards."""

    def __init__(self, name: str, capability: tuple[int, int] = (9, 0)):
        super().__init__(name)
        self.capability, self.state = capability, 7

    def is_available(self):
        return True

    def device_count(self):
        return 2

    def get_device_name(self, index):
        return f"card {index}"

    def get_device_capability(self, index):
        return self.capability

    def mem_get_info(self, index):
        return (5 + index) << 30, 16 << 30

    def get_rng_state_all(self):
        return [self.state]

    def set_rng_state_all(self, states):
        (self.state,) = states


@pytest.fixture
def only(monkeypatch):
    """Makes one kind of card the only one that is here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    def put(kind: str, card: Card) -> Card:
        monkeypatch.setattr(torch, kind, card, raising=False)
        if kind == "npu":
            monkeypatch.setitem(sys.modules, "torch_npu", types.ModuleType("torch_npu"))
        return card

    return put


@pytest.mark.parametrize(
    ("name", "capability", "dtype", "fp8"),
    [
        ("V100", (7, 0), "float16", False),
        ("T4", (7, 5), "float16", False),
        ("A100", (8, 0), "bfloat16", False),
        ("RTX 4090", (8, 9), "bfloat16", True),
        ("H100", (9, 0), "bfloat16", True),
    ],
)
def test_what_a_cuda_card_computes_in_follows_its_capability(only, monkeypatch, name, capability, dtype, fp8):
    only("cuda", Card("cuda", capability))
    monkeypatch.setenv("LOCAL_RANK", "1")
    found = pick_device()
    assert (found.kind, found.torch_name, found.count, found.dtype, found.fp8) == ("cuda", "cuda:1", 2, dtype, fp8)
    assert found.free_memory() == 6 << 30 and ("no fast bfloat16" in found.dtype_why) == (dtype == "float16")
    assert pick_device(use_cpu=True).kind == "cpu"


@pytest.mark.parametrize("kind", ["npu", "xpu"])
def test_other_cards_are_found_and_their_random_numbers_kept(only, kind):
    card = only(kind, Card(kind))
    found = pick_device()
    assert (found.torch_name, found.dtype, found.free_memory()) == (f"{kind}:0", "bfloat16", 5 << 30)
    assert devices.cards() == [card]
    before = RandomState.now()
    card.state = 8
    before.restore()
    assert card.state == 7


def test_an_apple_gpu_shares_the_main_memory(only, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    found = pick_device()
    assert found.torch_name == "mps" and found.free_memory() == pytest.approx(devices.main_memory(), rel=0.2)
    assert devices.cards() == []


@pytest.mark.parametrize(
    ("kind", "dtype", "there", "why"),
    [
        ("cuda", "bfloat16", True, None),
        ("cuda", "bfloat16", False, "pip install flash-attn"),
        ("cuda", "float32", True, "has no float32"),
        ("npu", "bfloat16", False, None),  # torch_npu has its own
        ("xpu", "bfloat16", True, "needs a GPU"),
        ("mps", "float16", True, "needs a GPU"),
        ("cpu", "float32", True, "needs a GPU"),
    ],
)
def test_flash_attention_where_it_can_be_and_sdpa_said_aloud_otherwise(monkeypatch, kind, dtype, there, why):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if there else None)
    reasons: dict[str, str] = {}
    device = Device(kind, "card", bf16_fast=True)
    found = _attention(ModelOptions(attn_impl="flash_attention_2"), device, dtype, reasons)
    assert found == ("flash_attention_2" if why is None else "sdpa")
    assert why is None or ("sdpa" in reasons["attn_impl"] and why in reasons["attn_impl"])


TWO_CARDS = Device("cuda", "card", True, count=2)
ALONE = Device("cpu", "a processor", False)


@pytest.mark.parametrize(
    ("text", "device", "given"),
    [
        ("auto", ALONE, "auto"),
        ("cpu", TWO_CARDS, {"": "cpu"}),
        ("cuda:1", TWO_CARDS, {"": "cuda:1"}),
        ("1", TWO_CARDS, {"": 1}),
        ('{"model.layers.0": 0, "lm_head": "cpu"}', TWO_CARDS, {"model.layers.0": 0, "lm_head": "cpu"}),
    ],
)
def test_a_device_map_is_what_accelerate_takes(text, device, given):
    assert placement.device_map(ModelOptions(device_map=text), device, 0, {}) == given


@pytest.mark.parametrize(
    ("text", "device", "said"),
    [
        ("nonsense", ALONE, "no such device"),
        ("cuda:0", ALONE, "isn't here"),
        ("0", ALONE, "isn't here"),
        ("cuda:2", TWO_CARDS, "cuda:0 to cuda:1"),
        ("npu:0", TWO_CARDS, "isn't here"),
        ("mps", TWO_CARDS, "isn't here"),
        ("{oops", ALONE, "not valid JSON"),
        ('{"": "cuda:7"}', TWO_CARDS, "isn't here"),
    ],
)
def test_a_device_that_is_not_here_is_an_error_before_weights_are_read(text, device, said):
    with pytest.raises(UsageError, match=said):
        placement.device_map(ModelOptions(device_map=text), device, 0, {})


def test_limits_of_memory():
    assert placement.max_memory({"0": "20GiB", "cpu": 10**9}) == {0: "20GiB", "cpu": 10**9}
    for wrong in ({"0": "10XB"}, {"gpu": "10GB"}, {"0": None}):
        with pytest.raises(UsageError, match="no limit of a device"):
            placement.max_memory(wrong)
    with pytest.raises(UsageError, match="only the CPU"):
        placement.device_map(ModelOptions(max_memory={"cpu": "1GB"}), ALONE, 0, {})
