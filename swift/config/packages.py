"""Optional packages that the command line names or switches off. Looks for them, imports none."""

from __future__ import annotations

import importlib.util
import os

from swift.config.commands import Config
from swift.errors import MissingPackage

FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def bnb_switched_off() -> bool:
    """USE_BNB=0 (as in the guide): bitsandbytes is not to be used, and its state is of no interest."""
    return os.environ.get("USE_BNB", "1").strip().lower() in ("0", "false", "no", "off")


def check_typed(config: Config) -> None:
    """MissingPackage for flash attention that the user asked for and that isn't installed. (One that a checkpoint's
    args.json asks for becomes sdpa, aloud.)"""
    specs = config.specs()
    if "attn_impl" not in specs or not config.given("attn_impl"):
        return
    if "infer_backend" in specs and config.value("infer_backend") != "pt":
        return
    wanted = config.value("attn_impl")
    if wanted in FLASH and importlib.util.find_spec(FLASH[wanted]) is None:
        raise MissingPackage(
            f"{wanted} needs flash-attn, which isn't installed",
            where="--use_flash_attn true",
            fix="pip install flash-attn --no-build-isolation (needs an NVIDIA GPU); or leave it out: attention is then "
            "torch's own sdpa, with the same result",
        )
