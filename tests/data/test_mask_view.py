import html
import re

from swift.chat import IGNORED, ChatEncoder
from swift.data import DataReport, Rows, encode_rows
from swift.data.mask_view import mask_html, mask_text, shown
from tests.tiny import tokenizer

ROWS = [
    {"messages": [{"role": "user", "content": "q <b>1</b>"}, {"role": "assistant", "content": "yes \x1b[31m & 你"}]},
    {"messages": [{"role": "user", "content": "q2"}, {"role": "assistant", "content": "a" * 300}]},
    {"messages": [{"role": "user", "content": "q3"}, {"role": "assistant", "content": "later"}]},
]


def test_what_is_coloured_is_what_is_learned():
    tok = tokenizer()
    encoder = ChatEncoder(tok, max_length=60, truncation_strategy="right")
    rows = Rows.of(ROWS)
    encoded = encode_rows(rows, encoder, report=DataReport())
    examples = list(shown(encoded, 2, encoder.decode, lambda row: str(rows.store.source(row))))
    first = encoder.encode(ROWS[0])
    learned = tok.decode([t for t in first.labels if t != IGNORED]).replace("\x1b", "\\x1b")
    whole = tok.decode(first.input_ids).replace("\x1b", "\\x1b")
    text = mask_text(examples)
    one, two = text.split("--- ")[1:]
    assert "".join(re.findall("\033\\[32m(.*?)\033\\[0m", one, re.DOTALL)) == learned
    assert re.sub("\033\\[[0-9]+m", "", one) == f"{examples[0].title}\n{whole}\n"
    assert examples[0].title == f"rows:1: {first.length} tokens, {first.trained} learned"
    # a cut row is shown as it is trained on, cut
    assert tok.decode(encoded[1]["input_ids"]) == re.sub("\033\\[[0-9]+m", "", two).split("\n", 1)[1]
    assert "later" not in text
    plain = mask_text(examples, colour=False)
    assert f"[[{learned}]]" in plain and "\033" not in plain
    page = mask_html(examples)
    marked = [html.unescape(m) for m in re.findall("<mark>(.*?)</mark>", page, re.DOTALL)]
    assert marked[0] == learned
    assert "<b>" not in page and "\x1b" not in page
