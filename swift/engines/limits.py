"""How long prompts and answers may be, the same in every engine that counts tokens itself."""

from __future__ import annotations

from dataclasses import dataclass

from swift.engines.protocol import PromptTooLong, RequestError, Sampling

# Where neither the request, the model's settings nor its context length say how long an answer may be.
UNBOUNDED_NEW_TOKENS = 2048


@dataclass(frozen=True)
class Lengths:
    """`context` bounds prompt and answer together (tokens; None: unknown). A prompt longer than `prompt_limit` is
    refused (`truncation` "delete") or cut on its "left" or "right". `default` is the answer's length when none is
    asked.
    """

    context: int | None = None
    prompt_limit: int | None = None
    truncation: str = "delete"
    default: int | None = None

    def cut(self, ids: list[int], whole: bool = False) -> list[int]:
        """The ids within the limit; PromptTooLong where they can't be cut, as with media in them (`whole`)."""
        limit = self.prompt_limit
        if limit is None or len(ids) <= limit:
            return ids
        if whole:
            what = f"the prompt has {len(ids)} tokens with its media, --max_length allows {limit}"
            raise PromptTooLong(what, tokens=len(ids), limit=limit, fix="a larger --max_length, or smaller media")
        if self.truncation == "left":
            return ids[-limit:]
        if self.truncation == "right":
            return ids[:limit]
        what = f"the prompt has {len(ids)} tokens, --max_length allows {limit}"
        raise PromptTooLong(what, tokens=len(ids), limit=limit, fix="--truncation_strategy left cuts it")

    def answer(self, sampling: Sampling, prompt_length: int) -> int:
        """How many tokens the answer may have; PromptTooLong when there is no room for one."""
        asked = sampling.max_new_tokens
        least = 1 if sampling.prompt_logprobs is None else 0
        if asked is not None and asked < least:
            raise RequestError(f"max_new_tokens must be at least {least}, not {asked}", param="max_new_tokens")
        wanted = self.default if asked is None else asked
        if self.context is None:
            return UNBOUNDED_NEW_TOKENS if wanted is None else wanted
        room = self.context - prompt_length
        if room < least:
            raise PromptTooLong(
                f"the prompt has {prompt_length} tokens and the context length is {self.context}",
                tokens=prompt_length,
                limit=self.context - least,
                fix="a shorter conversation, or a larger --max_model_len if the model can",
            )
        return room if wanted is None else min(wanted, room)
