"""accelerate starts no process group for DeepSpeed on a machine without an accelerator.

With DeepSpeed it chooses the backend by the accelerator it finds, and without one it chooses none: each process then
believes to be alone. Named beforehand, gloo works, since DeepSpeed itself knows CPUs. Seen in accelerate 1.15,
state.py, PartialState._prepare_backend.
"""

from __future__ import annotations

import os
from datetime import timedelta

# what transformers' TrainingArguments(accelerator_config=...) needs to take the state that exists
USE_IT = {"use_configured_state": True}


def start_group(seconds: int) -> None:
    """Make accelerate's process state for DeepSpeed over gloo."""
    from accelerate import PartialState

    name = "ACCELERATE_USE_DEEPSPEED"
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        PartialState(backend="gloo", timeout=timedelta(seconds=seconds))
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
