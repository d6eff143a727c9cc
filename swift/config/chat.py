"""The section that says how messages become tokens, for training and for generation alike."""

from __future__ import annotations

from dataclasses import dataclass

from swift.config.options import option


@dataclass(frozen=True)
class ChatOptions:
    template: str | None = option(aliases=("template_type", "chat_template"))
    system: str | None = option(aliases=("default_system",))
    max_length: int | None = option(low=8, aliases=("max_seq_length", "cutoff_len"))
    truncation_strategy: str = option(
        "delete",
        choices=("delete", "left", "right", "split"),
        aliases=("truncation_side",),
        values={"truncation_left": "left"},
    )
    loss_scale: str = option("default", aliases=("train_on",))
    enable_thinking: bool | None = option()
    preserve_thinking: bool | None = option()
    add_non_thinking_prefix: bool | None = option()
    template_kwargs: dict | None = option(aliases=("chat_template_kwargs",))
    response_prefix: str | None = option()
    use_chat_template: bool = option(True)
    padding_side: str = option("right", choices=("left", "right"))
