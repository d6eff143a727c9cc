"""The parts of models that see, and what the freezing options leave to train."""

from __future__ import annotations

import pytest

from swift.config.tuner import TunerOptions
from swift.errors import UsageError
from swift.models.parts import ALIGNER, LLM, VIT, find_parts
from swift.models.tuners import apply_tuner, optimizer_groups
from tests import tiny, tiny_vlm

FLAGS = {LLM: "freeze_llm", VIT: "freeze_vit", ALIGNER: "freeze_aligner"}


def made(family: str):
    kind, config, _ = tiny_vlm.FAMILIES[family]()
    return kind(config)


def trained_parts(model) -> set[str]:
    parts = find_parts(model)
    return {parts.of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("family", tiny_vlm.FAMILIES)
def test_every_parameter_has_its_part(family):
    model = made(family)
    parts = find_parts(model)
    found: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        found.setdefault(parts.of(name), []).append(name)
    assert found.keys() == {LLM, VIT, ALIGNER}
    decoder = {id(p) for p in model.get_decoder().parameters()}
    decoder |= {id(p) for p in model.get_output_embeddings().parameters()}
    assert {id(model.get_parameter(name)) for name in found[LLM]} == decoder
    assert all(any(word in name for word in ("projector", "connector", "merger")) for name in found[ALIGNER])
    assert all("vis" in name for name in found[VIT])


def test_a_model_of_text_is_all_language():
    parts = find_parts(tiny.model())
    assert not parts.several and parts.of("model.layers.0.self_attn.q_proj") == LLM


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("wanted", [{LLM}, {VIT}, {ALIGNER}, {LLM, VIT}, {LLM, VIT, ALIGNER}])
def test_what_isn_t_frozen_trains(kind, wanted):
    flags = {flag: part not in wanted for part, flag in FLAGS.items()}
    model = apply_tuner(made("llava"), TunerOptions(tuner_type=kind, **flags))
    assert trained_parts(model) == wanted


def test_names_reach_what_isn_t_frozen():
    words = TunerOptions(target_modules=("q_proj",))
    model = apply_tuner(made("llava"), words)
    assert trained_parts(model) == {LLM}
    model = apply_tuner(made("llava"), TunerOptions(target_modules=("q_proj",), freeze_vit=False))
    assert trained_parts(model) == {LLM, VIT}
    with pytest.raises(UsageError, match="frozen"):
        apply_tuner(made("llava"), TunerOptions(target_modules=("fc1",)))


def test_parts_have_rates_of_their_own():
    model = apply_tuner(made("llava"), TunerOptions(freeze_vit=False, freeze_aligner=False))
    groups = optimizer_groups(
        model, learning_rate=1e-4, weight_decay=0.0, part_rates={VIT: 1e-5, ALIGNER: 2e-5}, lorap_lr_ratio=None
    )
    parts, names = find_parts(model), {id(p): name for name, p in model.named_parameters()}
    rates = {(parts.of(names[id(p)]), group["lr"]) for group in groups for p in group["params"]}
    assert rates == {(LLM, 1e-4), (VIT, 1e-5), (ALIGNER, 2e-5)}
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())
