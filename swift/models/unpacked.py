"""Reads AWQ and GPTQ checkpoints without the packages that were made for them: the packed integers become plain
weights, tensor by tensor, while transformers loads them.

Promises: the values are those of the file, computed in float32 and rounded once to the dtype asked for; only one
matrix is unpacked at a time for each loading thread. Mixture-of-experts checkpoints, whose experts transformers leaves
random when it loads their packed form, come out whole. AWQ of 4 bits (GEMM layout), GPTQ of 2, 4 and 8 bits, v1 and v2.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from swift.errors import ModelFileError
from swift.models.packing import unpack_awq, unpack_gptq

PARTS = ("qweight", "qzeros", "scales", "g_idx")
METHODS = ("awq", "gptq")


class Unpacked:
    """One weight of a packed checkpoint, read and unpacked when it is sliced, as transformers' loader does."""

    def __init__(self, name: str, slices: dict[str, Any], quantization: Mapping[str, Any], dtype: torch.dtype):
        self.name, self.slices, self.quantization, self.dtype = name, slices, quantization, dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        tensors = {part: found[...] for part, found in self.slices.items()}
        if self.quantization["quant_method"] == "awq":
            weight = unpack_awq(tensors, self.dtype)
        else:
            offset = 0 if self.quantization.get("checkpoint_format") == "gptq_v2" else 1
            weight = unpack_gptq(tensors, self.dtype, int(self.quantization["bits"]), offset)
        return weight[index]


def check_packing(path: Path, quantization: Mapping[str, Any]) -> None:
    """ModelFileError for a variant of AWQ or GPTQ that isn't known here."""
    method, bits = quantization["quant_method"], quantization.get("bits", quantization.get("w_bit"))
    version = str(quantization.get("version", "gemm")).lower()
    where, fix = str(path / "config.json"), "pip install gptqmodel optimum, or use the unquantized model"
    if method == "awq" and (bits != 4 or version != "gemm"):
        raise ModelFileError(f"AWQ of {bits} bits in the {version} layout can't be unpacked", where=where, fix=fix)
    if method == "gptq" and (
        bits not in (2, 4, 8) or quantization.get("checkpoint_format", "gptq") not in ("gptq", "gptq_v2")
    ):
        layout = quantization.get("checkpoint_format", "gptq")
        raise ModelFileError(f"GPTQ of {bits} bits in the {layout} layout can't be unpacked", where=where, fix=fix)


def unpacked_state(files: list[Path], quantization: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Name -> slice, for `from_pretrained(None, state_dict=...)`: packed layers as their `weight`, the rest as it is.

    ModelFileError when a packed layer lacks a part.
    """
    from safetensors import safe_open

    plain: dict[str, Any] = {}
    packed: dict[str, dict[str, Any]] = {}
    for file in files:
        if file.suffix != ".safetensors":
            raise ModelFileError("a packed checkpoint that isn't safetensors", where=str(file))
        handle = safe_open(file, framework="pt")
        for name in handle.keys():  # noqa: SIM118 (not a dict)
            layer, _, part = name.rpartition(".")
            if part in PARTS:
                packed.setdefault(layer, {})[part] = handle.get_slice(name)
            else:
                plain[name] = handle.get_slice(name)
    for layer, slices in packed.items():
        lacking = {"qweight", "qzeros", "scales"} - set(slices)
        if lacking:
            raise ModelFileError(f"{layer} lacks its {' and '.join(sorted(lacking))}", where=str(files[0].parent))
        plain[f"{layer}.weight"] = Unpacked(layer, slices, quantization, dtype)
    return plain
