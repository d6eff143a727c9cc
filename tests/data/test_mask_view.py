import html
import re

from swift.chat import IGNORED, ChatEncoder
from swift.data import Rows
from swift.data.mask_view import mask_html, mask_view
from tests.tiny import tokenizer

ROWS = [
    {"messages": [{"role": "user", "content": "q <b>1</b>"}, {"role": "assistant", "content": "yes \x1b[31m & 你"}]},
    {"messages": [{"role": "user", "content": "q2"}, {"role": "assistant", "content": "a" * 300}]},
    {"messages": [{"role": "user", "content": "q3"}, {"role": "assistant", "content": "later"}]},
]


def test_what_is_coloured_is_what_is_learned():
    tok = tokenizer()
    encoder = ChatEncoder(tok, max_length=100)
    encoded = encoder.encode(ROWS[0])
    learned = tok.decode([t for t in encoded.labels if t != IGNORED]).replace("\x1b", "\\x1b")
    whole = tok.decode(encoded.input_ids).replace("\x1b", "\\x1b")
    text = mask_view(encoder, Rows.of(ROWS), 2)
    first, second = text.split("--- ")[1:]
    assert "".join(re.findall("\033\\[32m(.*?)\033\\[0m", first, re.DOTALL)) == learned
    assert re.sub("\033\\[[0-9]+m", "", first) == f"rows:1\n{whole}\n"
    assert "can't be encoded" in second and "later" not in text
    plain = mask_view(encoder, Rows.of(ROWS), 1, colour=False)
    assert f"[[{learned}]]" in plain and "\033" not in plain
    page = mask_html(encoder, Rows.of(ROWS), 2)
    assert html.unescape("".join(re.findall("<mark>(.*?)</mark>", page, re.DOTALL))) == learned
    assert "<b>" not in page and "\x1b" not in page and "can't be encoded" in page.replace("&#x27;", "'")
