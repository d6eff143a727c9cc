"""How weights, gradients and optimizer state are spread over data-parallel processes: DDP, ZeRO's stages, FSDP2.

Promises: the bytes that one process holds, from the whole. Knows nothing of what is sent between them, but of the
buffers it is sent from.
"""

from __future__ import annotations

from dataclasses import dataclass

WIDE = 4
BUCKET = 200_000_000  # values that the built-in configurations of DeepSpeed send at a time


@dataclass(frozen=True)
class Spread:
    """`engine`: ddp, deepspeed or fsdp. `stage` as ZeRO counts: each process holds a part of the optimizer's state (1),
    of the gradients too (2), of the weights too (3; FSDP2 does). `offload_optimizer`, `offload_weights`: what lies in
    main memory.
    """

    processes: int = 1
    engine: str = "ddp"
    stage: int = 0
    offload_optimizer: bool = False
    offload_weights: bool = False

    def _parts(self, stage: int) -> int:
        return self.processes if self.stage >= stage else 1

    @property
    def parts_of_weights(self) -> int:
        return self._parts(3)

    def weights(self, whole: int, gathered: int) -> int:
        """`gathered`: bytes of what is whole at the same time, where the weights are in parts."""
        if self.stage < 3 or (self.processes == 1 and not self.offload_weights):
            return whole
        return min(whole, (0 if self.offload_weights else whole // self.processes) + gathered)

    def gradients(self, whole: int) -> int:
        """What a process holds of them from one batch to the next."""
        if self.offload_optimizer and self.stage >= 2:
            return 0
        return whole // self._parts(2)

    def buckets(self, whole: int, item: int) -> int:
        """What is on its way to the other processes; DDP's hold all gradients once more."""
        if self.processes == 1 and self.engine != "deepspeed":
            return 0
        if self.engine == "ddp":
            return whole
        return min(whole, BUCKET * item) if self.engine == "deepspeed" else 0

    def optimizer(self, trainable: int, values: float, item: int, extra: float) -> int:
        """`values` of the parameter's size (`item` bytes) and `extra` bytes for each of the parameters that train.

        DeepSpeed's optimizer works on a copy of the weights in float32.
        """
        if self.offload_optimizer:
            return 0
        each = values * item + extra
        if self.engine == "deepspeed" and self.stage:
            each = values * WIDE + extra + WIDE
        return int(trainable * each) // self._parts(1)
