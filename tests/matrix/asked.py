"""What a tiny model is trained on and asked: rows as users write them, and prompts as plain transformers and as swift's
engine take them. Rows of models that see or hear have media, and one of them has none.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from tests import tiny_vlm
from tests.matrix import senses

PAIRS = (("What is one plus one?", "One plus one is two."), ("你是谁？", "我是一个人工智能助手。"))
PROMPT_LENGTHS = (5, 41, 12)
WORDS = {"image": "What is this?", "video": "What happens?", "audio": "What is said?"}
FIELDS = {"image": "images", "video": "videos", "audio": "audios"}


class Texts:
    """Prompts of random ids, longer and shorter than a sliding window."""

    def __init__(self, base: Path):
        self.base = base

    def rows(self) -> list[dict[str, Any]]:
        return [{"messages": [_says("user", q), _says("assistant", a)]} for q, a in PAIRS] * 2

    @cached_property
    def ids(self) -> list[list[int]]:
        import torch

        generator = torch.Generator().manual_seed(1)
        return [torch.randint(7, 500, (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]

    @cached_property
    def inputs(self) -> list[dict[str, Any]]:
        """What plain transformers computes with, each prompt for itself."""
        import torch

        return [{"input_ids": torch.tensor([ids])} for ids in self.ids]

    def requests(self) -> list[dict[str, Any]]:
        """The same as arguments of GenerationRequest."""
        return [{"prompt_ids": ids} for ids in self.ids]

    def encoder(self, tokenizer: Any) -> Any:
        return None


class Talks:
    """One question with each kind of media, one with another picture or sound, one without."""

    def __init__(self, base: Path, model_type: str, media: Path):
        self.base, self.media = base, media
        self.kinds, self.texts = senses.kinds_of(model_type), senses.recipe_of(model_type).texts
        media.mkdir(exist_ok=True)

    def medium(self, kind: str, number: int) -> str:
        path = self.media / f"{kind}{number}"
        if kind == "image":
            return tiny_vlm.picture(path.with_suffix(".png"), number)
        if kind == "audio":
            return tiny_vlm.sound(path.with_suffix(".wav"), number)
        return tiny_vlm.film(path.with_suffix(".mp4"), frames=8, rate=4, shade=100 * number, size=(84, 56), grain=80)

    def rows(self) -> list[dict[str, Any]]:
        rows = [
            {
                "messages": [_says("user", f"<{kind}>{WORDS[kind]}"), _says("assistant", PAIRS[0][1])],
                FIELDS[kind]: [self.medium(kind, 0)],
            }
            for kind in self.kinds
        ]
        question, answer = PAIRS[1]
        if not self.texts:
            return rows * 2
        return [*rows, {"messages": [_says("user", question), _says("assistant", answer)]}]

    @cached_property
    def talks(self) -> list[list[dict[str, Any]]]:
        asked = [(kind, number) for kind in self.kinds for number in (0, 1)]
        talks = [[_says("user", [{"type": k, k: self.medium(k, n)}, _text(WORDS[k])])] for k, n in asked]
        return [*talks, *([_says("user", [_text(PAIRS[0][0])])],) * self.texts]

    @cached_property
    def processor(self) -> Any:
        from swift.models.load import load_processor

        return load_processor(self.base)

    @cached_property
    def inputs(self) -> list[dict[str, Any]]:
        """With numbers as exact as the model's (Llama 4's processor gives bfloat16)."""
        return [
            {name: value.float() if value.is_floating_point() else value for name, value in made.items()}
            for made in map(self.plain, self.talks)
        ]

    def plain(self, talk: list[dict[str, Any]]) -> dict[str, Any]:
        """What the processor of plain transformers makes of a conversation."""
        talk = [{**turn, "content": [self._read(part) for part in turn["content"]]} for turn in talk]
        if getattr(self.processor, "video_processor", None):
            self.processor.video_processor.fetch_videos = _by_pyav
        made = dict(
            self.processor.apply_chat_template(
                [talk],
                chat_template=self.processor.tokenizer.chat_template,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
            )
        )
        return {name: value for name, value in made.items() if hasattr(value, "is_floating_point")}

    def _read(self, part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] == "image":
            from PIL import Image

            return {"type": "image", "image": Image.open(part["image"]).convert("RGB")}
        if part["type"] == "audio":
            import soundfile
            import soxr

            heard, rate = soundfile.read(part["audio"], dtype="float32")
            hears = getattr(self.processor, "feature_extractor", None) or self.processor.audio_processor
            return {"type": "audio", "audio": soxr.resample(heard, rate, getattr(hears, "sampling_rate", rate))}
        return part

    def requests(self) -> list[dict[str, Any]]:
        return [{"messages": talk} for talk in self.talks]

    def encoder(self, tokenizer: Any) -> Any:
        from swift.chat import ChatEncoder

        return ChatEncoder(tokenizer, processor=self.processor)


def _says(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def _by_pyav(found: Any, sample_indices_fn: Any = None) -> Any:
    """`fetch_videos` of transformers' video processors, which insist on torchcodec."""
    from transformers.video_utils import load_video

    if isinstance(found, list):
        return list(zip(*[_by_pyav(one, sample_indices_fn) for one in found], strict=True))
    return load_video(found, backend="pyav", sample_indices_fn=sample_indices_fn)
