"""Messages -> text by the model's own chat template -> token ids and labels; and replies back into messages."""

from swift.chat.encoded import IGNORED, Encoded, RowDropped
from swift.chat.encoder import ChatEncoder
from swift.chat.mask import render_mask

__all__ = ["IGNORED", "ChatEncoder", "Encoded", "RowDropped", "render_mask"]
