"""A checkpoint's own processor: a rendered text and its media -> the ids and tensors that the model takes.

Promises: what it gives is what `processor(text=..., images=...)` of plain transformers gives, called as
`processor.apply_chat_template` calls it (special tokens are added unless the text begins with BOS). The processor is
loaded when the first medium comes. Knows nothing of templates, labels and batches.
"""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from swift.chat.grounding import Grounding, Sizes
from swift.chat.medium import MediaSettings, load_audio, load_image, load_video, read_image, smaller
from swift.errors import DataError, SwiftError

LOADERS = {"images": load_image, "videos": load_video, "audios": load_audio}
PARTS = {
    "image": ("image_processor",),
    "video": ("video_processor",),
    "audio": ("feature_extractor", "audio_processor"),
}
OFFSETS = "text_replacement_offsets"


@dataclass(frozen=True)
class Processed:
    """ids of the expanded text; `tensors`: what else the model takes, each for this row alone, by argument name.

    replacements: (span in the text, what stands there now), in order; None from a processor that doesn't say.
    placeholders: ids that stand for a piece of a medium.
    """

    ids: list[int]
    tensors: dict[str, Any]
    replacements: list[tuple[tuple[int, int], str]] | None = None
    placeholders: frozenset[int] = frozenset()

    def expanded(self, text: str) -> str:
        """The text with its placeholders replaced."""
        parts, last = [], 0
        for (start, end), new in self.replacements or ():
            parts += [text[last:start], new]
            last = end
        return "".join([*parts, text[last:]])

    def mover(self) -> Callable[[int], int]:
        """Where a character of the text, none inside a placeholder, stands in the expanded one."""
        ends = [span[1] for span, _ in self.replacements or ()]
        grown = [0]
        for (start, end), new in self.replacements or ():
            grown.append(grown[-1] + len(new) - (end - start))
        return lambda at: at + grown[bisect_right(ends, at)]

    def placeholder_positions(self) -> list[int]:
        return [i for i, token in enumerate(self.ids) if token in self.placeholders]

    def token_aligned(self) -> dict[str, Any]:
        """The tensors with a value for each token: [1, tokens, ...]."""
        size = (1, len(self.ids))
        return {name: value for name, value in self.tensors.items() if value.ndim > 1 and value.shape[:2] == size}


@dataclass
class Processing:
    """`load()` gives the processor. `settings`: how media are read and made smaller. `grounding`: how the model's
    family writes places in images."""

    load: Callable[[], Any]
    settings: MediaSettings = field(default_factory=MediaSettings)
    grounding: Grounding = field(default_factory=Grounding)
    _loaded: Any = None
    _says_offsets: bool = True
    _by_row: frozenset[str] | None = None

    @classmethod
    def of(cls, processor: Any) -> Processing:
        """Of a processor that is there already."""
        return cls(lambda: processor)

    @property
    def processor(self) -> Any:
        if self._loaded is None:
            self._loaded = self.load()
        return self._loaded

    @property
    def chat_template(self) -> str | None:
        return self.processor.chat_template

    def sizes(self, images: Sequence[Any]) -> Sizes:
        """Of image number i: (width, height) of the file, and as the model sees it where places are pixels of that."""

        def of(number: int) -> tuple[tuple[int, int], tuple[int, int]]:
            if not 0 <= number < len(images):
                raise DataError(f"a place is in image {number}, and the row has {len(images)}")
            image = read_image(images[number])
            if self.grounding.scale != "pixels":
                return image.size, image.size
            shown = smaller(image, self.settings.max_pixels)
            made = self.processor.image_processor(images=[shown], return_tensors="pt")
            if "image_grid_thw" not in made:
                return image.size, shown.size
            patch = self.processor.image_processor.patch_size
            _, rows, columns = made["image_grid_thw"][0].tolist()
            return image.size, (columns * patch, rows * patch)

        return of

    def run(self, text: str, media: Mapping[str, Sequence[Any]]) -> Processed:
        """One row. DataError when a medium can't be read or the processor refuses it."""
        with ExitStack() as scope:
            arguments: dict[str, Any] = {}
            for name, items in media.items():
                if items:
                    self._check_kind(name)
                    arguments |= LOADERS[name](items, self.processor, self.settings, scope)
            bos = self.processor.tokenizer.bos_token
            if bos is not None and text.startswith(bos):
                arguments["add_special_tokens"] = False
            out = self._call(text, arguments)
        ids = out.pop("input_ids")[0].tolist()
        out.pop("attention_mask", None)
        offsets = out.pop(OFFSETS, None)
        out.pop("labels", None)  # of a processor that makes its own (paligemma)
        return Processed(ids, out, _replacements(offsets), self._placeholders())

    def _call(self, text: str, arguments: dict[str, Any]) -> dict[str, Any]:
        import torch

        asked = {"return_text_replacement_offsets": True} if self._says_offsets else {}
        try:
            out = self.processor(text=[text], **arguments, **asked, return_tensors="pt")
        except (SwiftError, ImportError, MemoryError):
            raise
        except Exception as error:
            if isinstance(error, TypeError) and "return_text_replacement_offsets" in str(error):
                self._says_offsets = False
                return self._call(text, arguments)
            raise DataError(f"the model's processor refuses the row: {error}") from error
        return {name: value for name, value in out.items() if name == OFFSETS or isinstance(value, torch.Tensor)}

    @property
    def kinds(self) -> frozenset[str]:
        """Of "image", "video" and "audio" those that the processor has a part for."""
        return frozenset(
            kind for kind, parts in PARTS.items() if any(getattr(self.processor, part, None) for part in parts)
        )

    @property
    def marks_answers(self) -> bool:
        """Whether `token_type_ids` are 1 from the answer on and 0 before it, where every token sees all others
        (paligemma, whose processor is told the answer apart from the prompt, as `suffix`)."""
        return "suffix" in inspect.signature(self.processor.__call__).parameters

    def _check_kind(self, name: str) -> None:
        if name.removesuffix("s") not in self.kinds:
            more = " without torchvision" if name == "videos" else ""
            raise DataError(f"the model takes no {name}{more}")

    def _placeholders(self) -> frozenset[int]:
        """Ids of image, video and audio tokens, as far as the processor names them."""
        found: list[Any] = []
        for kind in ("image", "video", "audio"):
            token = getattr(self.processor, f"{kind}_token", None)
            found.append(getattr(self.processor, f"{kind}_token_id", None))
            found.append(self.processor.tokenizer.convert_tokens_to_ids(token) if isinstance(token, str) else None)
        return frozenset(token for token in found if isinstance(token, int))

    def mixes(self, text: str, media: Mapping[str, Sequence[Any]]) -> bool:
        """Whether a row of text has beside this one the logits that it has alone. Cross attention spreads over all
        images where it may see none (transformers' mllama), so it can't."""
        return "cross_attention_mask" not in self.run(text, media).tensors

    def tells_apart(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether each kind of media in these rows has a place of its own: not where two kinds with tensors of their
        own have one placeholder (images and videos of transformers' GLM-4V)."""
        seen: dict[frozenset[int], frozenset[str]] = {}
        for row in rows:
            media = dict(row)
            made = self.run(media.pop("text"), media)
            places = frozenset(made.ids) & made.placeholders
            kinds = frozenset(made.tensors) - frozenset(made.token_aligned())
            if places and seen.setdefault(places, kinds) != kinds:
                return False
        return True

    def by_row(self, text: str, media: Mapping[str, Sequence[Any]]) -> frozenset[str]:
        """Names of the tensors whose first dimension counts rows and not media: found by giving the processor one row
        with every medium twice. A processor that takes one medium a row has none: rows without it have no place."""
        if self._by_row is None:
            try:
                twice = self.run(text + text, {name: [*items, *items] for name, items in media.items()}).tensors
            except DataError:
                twice = {}
            self._by_row = frozenset(name for name, value in twice.items() if value.shape[:1] == (1,))
        return self._by_row


def needed(processing: Processing | None) -> Processing:
    """DataError where there is none."""
    if processing is None:
        raise DataError("the row has images, videos or audio, and there is no processor for them here")
    return processing


def _replacements(offsets: Any) -> list[tuple[tuple[int, int], str]] | None:
    """Of the one text given; an empty list from a processor that replaces nothing says nothing."""
    if not offsets or not offsets[0]:
        return None
    return [(tuple(found["span"]), found["replacement"]) for found in offsets[0]]
