"""The ledger of saved tensors against what autograd really saves, seen through torch's own hooks."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from swift.advise.activations import Regime, expert_copies, saved_per_token
from swift.advise.shape import shape_of
from tests import tiny

ROWS, LENGTH = 2, 160
SIZES = dict(hidden_size=64, intermediate_size=160, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
MOE = dict(moe_intermediate_size=48, num_experts=8, num_experts_per_tok=2)
CASES = [
    ("llama", dict(full=True)),
    ("llama", dict()),
    ("llama", dict(dropout=0.1)),
    ("llama", dict(dtype=torch.bfloat16)),
    ("llama", dict(dtype=torch.bfloat16, mixed=True, dropout=0.1)),
    ("llama", dict(full=True, dtype=torch.bfloat16, mixed=True)),
    ("llama", dict(full=True, attention="eager")),
    ("llama", dict(full=True, drops=0.1)),
    ("llama", dict(dropout=0.1, drops=0.1)),
    ("llama", dict(targets=("q_proj", "v_proj"))),
    ("qwen2", dict(dropout=0.1)),
    ("qwen3", dict(full=True)),
    ("qwen3", dict(dropout=0.1)),
    ("gemma2", dict(attention="eager")),
    ("gemma3_text", dict(full=True, dtype=torch.bfloat16)),
    ("mistral", dict(dtype=torch.bfloat16, mixed=True)),
    ("qwen3_moe", dict(full=True)),
    ("qwen3_moe", dict(targets=("q_proj", "o_proj"))),
    ("starcoder2", dict(dropout=0.1)),
]


def saved_bytes(
    family,
    layers,
    *,
    full=False,
    dropout=0.0,
    dtype=torch.float32,
    mixed=False,
    targets=None,
    attention="sdpa",
    padded=False,
    drops=0.0,
):
    """Bytes of the distinct storages that one forward pass saves, parameters left out."""
    config = make_config(family, layers, drops)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    if not full:
        model = get_peft_model(
            model,
            LoraConfig(
                r=8,
                lora_dropout=dropout,
                target_modules=list(targets) if targets else "all-linear",
                task_type="CAUSAL_LM",
            ),
        )
    model.train()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage  # kept, so that no address is used twice
        return tensor

    ids = torch.randint(3, config.vocab_size, (ROWS, LENGTH))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, LENGTH // 2 :] = 0
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
    ):
        model(input_ids=ids, attention_mask=mask, labels=ids)
    return sum(s.nbytes() for s in storages.values())


def make_config(family, layers, drops=0.0):
    """`drops`: share of the attention scores that are dropped."""
    extra = dict(layer_types=["full_attention"] * layers) if family.startswith("gemma") else {}
    extra |= MOE if family.endswith("_moe") else {}
    return tiny.config(family, num_hidden_layers=layers, attention_dropout=drops, **SIZES, **extra)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "how"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values())) or "lora"
)
def test_a_layer_saves_what_the_ledger_says(family, how):
    measured = saved_bytes(family, 3, **how) - saved_bytes(family, 2, **how)
    layer = shape_of(make_config(family, 2, how.get("drops", 0.0)).to_dict()).layers[1]
    assert estimated(layer, **how) == pytest.approx(measured, rel=0.02)


@pytest.mark.filterwarnings("ignore")
def test_padding_costs_a_mask_per_layer_and_repeated_keys():
    measured = saved_bytes("llama", 3, padded=True) - saved_bytes("llama", 2, padded=True)
    layer = shape_of(make_config("llama", 2).to_dict()).layers[1]
    assert estimated(layer, padded=True) == pytest.approx(measured, rel=0.03)


def estimated(
    layer,
    *,
    full=False,
    dropout=0.0,
    dtype=torch.float32,
    mixed=False,
    targets=None,
    attention="sdpa",
    padded=False,
    drops=0.0,
):
    names = targets or [x.name for x in layer.linears if not x.router]
    regime = Regime(
        item=dtype.itemsize,
        mixed=mixed,
        full=full,
        rank=8,
        targets=frozenset(names),
        dropout=dropout > 0,
        eager=attention == "eager",
        padded=padded,
        fused_dropout=False,  # on a CPU
    )
    return ROWS * LENGTH * saved_per_token(layer, 64, regime, LENGTH) + expert_copies(layer, regime)


@pytest.mark.parametrize("light, rows", [(False, [17, 23]), (True, [40])])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_ledger_of_fused_layers_equals_what_autograd_keeps(family, light, rows):
    from peft import LoraConfig, get_peft_model

    from swift.advise.activations import Regime, fused_saved_per_token
    from swift.advise.memory import adapted_names
    from swift.advise.shape import shape_of
    from swift.train.lean.path import FastPath
    from swift.train.lean.segments import Segments, attention_arguments
    from tests import tiny

    tokens = sum(rows)
    kept = []
    for layers in (2, 4):
        base = tiny.model(family, num_hidden_layers=layers)
        model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).train()
        path = FastPath(model, fused_layers=True, light=light)
        path.engage()
        base.get_input_embeddings().register_forward_hook(lambda m, a, out: out.requires_grad_())
        sizes: dict[int, int] = {}
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def note(tensor, sizes=sizes, parameters=parameters):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        ids = torch.randint(5, 500, (1, tokens))
        arguments = attention_arguments(Segments(rows), base.config._attn_implementation, ids.device)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            out = base.model(input_ids=ids, use_cache=False, **arguments)
        kept.append(sum(sizes.values()))
        del out
    shape = shape_of(base.config.to_dict())
    regime = Regime(item=4, rank=4, targets=adapted_names(shape, ("all-linear",)), alone=len(rows) == 1)
    said = fused_saved_per_token(shape.layers[0], shape.hidden, regime, light) * tokens
    assert (kept[1] - kept[0]) / 2 == pytest.approx(said, rel=0.05)
