"""The weights of a checkpoint: written as plain peft or transformers files, read back exactly."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights

from swift.errors import CheckpointError
from swift.models.adapters import place_by_name
from swift.models.quiet import quiet


def save_weights(
    model: torch.nn.Module, directory: Path, max_shard_size: str, state: dict[str, torch.Tensor] | None = None
) -> None:
    """An adapter directory for a PeftModel, a whole model directory otherwise. `state`: the weights, gathered, where
    the model holds only shards of them."""
    with quiet():
        if isinstance(model, PeftModel):
            # Whole embeddings never belong to an adapter here (new tokens have rows of their own), and asking peft to
            # find out would make it look for the base model on a hub.
            model.save_pretrained(str(directory), save_embedding_layers=False, state_dict=state)
        else:
            model.save_pretrained(str(directory), max_shard_size=max_shard_size, state_dict=state)


def load_weights(model: torch.nn.Module, directory: Path) -> None:
    """Put an adapter's tensors into the PeftModel that wrote them, every one into its place.

    A whole model is loaded from its checkpoint directory in the first place (transformers may store weights in another
    shape than it keeps them in, so only its own loader reads them back), and nothing is left to do here.
    """
    if not isinstance(model, PeftModel):
        return
    saved = load_peft_weights(str(directory), device="cpu")
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    differing = sorted(saved.keys() ^ wanted.keys()) or [n for n in saved if saved[n].shape != wanted[n].shape]
    if differing:
        raise CheckpointError(
            f"the adapter's tensors aren't those of this run: {differing[0]} ({len(differing)} differ)",
            where=str(directory),
            fix="resume with the options of the run (its args.json)",
        )
    place_by_name(model, saved)
