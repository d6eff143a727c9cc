"""What is in a file comes out, value by value with its line; what can't be read is reported where it stands."""

import bz2
import csv
import gzip
import io
import json
import lzma

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift.data.read import Broken, read_file
from swift.errors import DataError

ROWS = [{"query": "q", "n": 1}, {"query": "é 你 \U0001f600", "n": None}, {"query": "a\nb", "n": [1, {"x": 2}]}]


def read(path):
    return [(value, source.line) for value, source in read_file(path)]


def values(path):
    return [value for value, _ in read(path)]


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines_of(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.ndjson", "X.JSONL"])
def test_json_lines_in_any_encoding_and_line_ending(tmp_path, name, ending, encoding):
    path = write(tmp_path, name, lines_of(ROWS).replace("\n", ending).encode(encoding))
    assert read(path) == [(row, i + 1) for i, row in enumerate(ROWS)]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_array_gives_each_row_with_its_line(tmp_path, name, indent, encoding):
    text = json.dumps(ROWS, indent=indent, ensure_ascii=False)
    path = write(tmp_path, name, text.encode(encoding))
    found = read(path)
    assert [value for value, _ in found] == ROWS
    starts = [i + 1 for i, line in enumerate(text.split("\n")) if line == " {"] if indent else [1, 1, 1]
    assert [line for _, line in found] == starts


@pytest.mark.parametrize("wrap", [lambda r: {"data": r}, lambda r: {"version": "1", "rows": r, "note": [1]}])
def test_wrapped_arrays(tmp_path, wrap):
    path = write(tmp_path, "x.json", json.dumps(wrap(ROWS), indent=2))
    assert values(path) == ROWS
    assert all('"query"' in path.read_text().split("\n")[line] for _, line in read(path))  # the line after {


def test_a_map_of_names_to_rows_and_a_single_row(tmp_path):
    assert values(write(tmp_path, "a.json", json.dumps({"r1": ROWS[0], "r2": ROWS[1]}))) == ROWS[:2]
    row = {"messages": [{"role": "user", "content": "x"}]}
    assert values(write(tmp_path, "b.json", json.dumps(row, indent=1))) == [row]
    assert values(write(tmp_path, "c.jsonl", json.dumps(row, indent=1))) == [row]
    pair = {"chosen": {"role": "assistant"}, "rejected": {"role": "assistant"}}
    assert values(write(tmp_path, "d.json", json.dumps(pair))) == [pair]


def zstd(data):
    return pyarrow.compress(data, codec="zstd", asbytes=True)


@pytest.mark.parametrize(
    "pack, suffix", [(gzip.compress, ".gz"), (bz2.compress, ".bz2"), (lzma.compress, ".xz"), (zstd, ".zst")]
)
def test_compressed(tmp_path, pack, suffix):
    assert values(write(tmp_path, "x.jsonl" + suffix, pack(lines_of(ROWS).encode()))) == ROWS
    half = pack(lines_of(ROWS * 50).encode())[:-20]
    with pytest.raises(DataError):
        values(write(tmp_path, "half.jsonl" + suffix, half))


def test_compression_is_seen_in_the_file_not_in_its_name(tmp_path):
    text = lines_of(ROWS).encode()
    assert values(write(tmp_path, "unpacked.jsonl.gz", text)) == ROWS
    assert values(write(tmp_path, "packed.jsonl", gzip.compress(text))) == ROWS
    assert values(write(tmp_path, "joined.jsonl.gz", gzip.compress(text) + gzip.compress(text))) == ROWS * 2


def test_joined_files_and_objects_one_behind_the_other(tmp_path):
    joined = b"".join(b"\xef\xbb\xbf" + lines_of([row]).encode() for row in ROWS)
    assert values(write(tmp_path, "bom.jsonl", joined)) == ROWS
    spread = "\n".join(json.dumps(row, indent=2) for row in ROWS)
    for name in ("jq.json", "jq.jsonl"):
        found = read(write(tmp_path, name, spread))
        assert [value for value, _ in found] == ROWS and [line for _, line in found] == [1, 5, 9]


def test_half_a_character_at_the_end_of_utf_16(tmp_path):
    found = read(write(tmp_path, "x.jsonl", lines_of(ROWS).encode("utf-16") + b"\x41"))
    assert [value for value, _ in found[:-1]] == ROWS
    assert isinstance(found[-1][0], Broken) and found[-1][1] == 4


BAD_LINES = {
    b'{"a": 1': "broken JSON",
    b'{"a": 1} {"b": 2}': "broken JSON",
    b'{"a": "\x00"}': "broken JSON",
    b"\x00\x00\x00": "broken JSON",
    b'{"a": "\xff\xfe"}': "not UTF-8",
    b'{"a": "\xe4\xbd"}': "not UTF-8",
    b"[" * 200000: "broken JSON",
    b'{"a":' * 100000 + b"1" + b"}" * 100000: "broken JSON",
    b'{"a": ' + b"9" * 5000 + b"}": "broken JSON",
    b"plain text": "broken JSON",
}


@pytest.mark.parametrize("bad", BAD_LINES, ids=range(len(BAD_LINES)))
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_broken_line_costs_only_itself(tmp_path, bad, place):
    lines = [b'{"a": 1}', b'{"a": 2}']
    lines.insert(place, bad)
    found = read(write(tmp_path, "x.jsonl", b"\n".join(lines)))
    assert [line for _, line in found] == [1, 2, 3]
    broken = found.pop(place)[0]
    assert isinstance(broken, Broken) and broken.reason == BAD_LINES[bad] and broken.detail
    assert [value for value, _ in found] == [{"a": 1}, {"a": 2}]


def test_a_line_of_ten_megabytes(tmp_path):
    row = {"text": "x" * 10_000_000}
    assert values(write(tmp_path, "x.jsonl", lines_of([ROWS[0], row, ROWS[0]]))) == [ROWS[0], row, ROWS[0]]
    text = io.StringIO()
    csv.writer(text).writerows([["text"], [row["text"]], ["y"]])
    assert values(write(tmp_path, "x.csv", text.getvalue())) == [row, {"text": "y"}]


@pytest.mark.parametrize(
    "text, where",
    [
        ('[{"a": 1}, {"a": ]', ":1:18"),
        ('[\n{"a": 1},\n{"a" 2}\n]', ":3:6"),
        ('[{"a": 1}', ":1:10"),
        ('[{"a": 1}]\n[', ":2:1"),
        ('{"data": [{"a": 1}}', ":1:19"),
        ("[" * 100000, ":1:"),
    ],
)
def test_a_broken_array_is_an_error_with_line_and_column(tmp_path, text, where):
    with pytest.raises(DataError) as error:
        values(write(tmp_path, "x.json", text))
    assert where in error.value.where


def test_csv_against_the_csv_module(tmp_path):
    rows = [["query", "response"], ["a, b", 'say "x"'], ["two\nlines", ""], ["é", "\tz"]]
    for delimiter, name in ((",", "x.csv"), ("\t", "x.tsv"), (";", "y.csv")):
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter).writerows(rows)
        found = read(write(tmp_path, name, b"\xef\xbb\xbf" + text.getvalue().encode()))
        assert [list(value.values()) for value, _ in found] == rows[1:]
        assert [line for _, line in found] == [2, 3, 5]


def test_csv_rows_of_the_wrong_width_are_reported(tmp_path):
    found = read(write(tmp_path, "x.csv", "a,b\n1,2\n3\n\n4,5,6\n7,8\n"))
    assert [(isinstance(v, Broken), line) for v, line in found] == [(False, 2), (True, 3), (True, 5), (False, 6)]


def test_an_open_quote_says_how_much_it_swallows(tmp_path):
    found = read(write(tmp_path, "x.csv", 'a,b\n1,2\n"3,4\n5,6\n7,8\n'))
    assert found[0] == ({"a": "1", "b": "2"}, 2)
    assert found[1][1] == 3 and "2 more lines are lost" in found[1][0].detail and len(found) == 2


def test_txt_is_a_text_a_line_and_blank_lines_are_none(tmp_path):
    path = write(tmp_path, "x.txt", "one\r\n\r\n  \n two \n\xff".encode("latin-1"))
    found = read(path)
    assert found[:2] == [({"text": "one"}, 1), ({"text": " two "}, 4)]
    assert found[2][0].reason == "not UTF-8" and found[2][1] == 5


def test_parquet_and_arrow(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"messages": [{"role": "user", "content": f"é{i}"}], "n": i} for i in range(2500)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=700)
    with pa.OSFile(str(tmp_path / "s.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table, max_chunksize=300)
    with pa.OSFile(str(tmp_path / "f.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)
    for name in ("x.parquet", "s.arrow", "f.arrow"):
        assert read(tmp_path / name) == [(row, i + 1) for i, row in enumerate(rows)]
        whole = (tmp_path / name).read_bytes()
        for size in (0, 3, len(whole) // 2):
            with pytest.raises(DataError):
                values(write(tmp_path, "half" + (tmp_path / name).suffix, whole[:size]))


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.txt"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"  \r\n"])
def test_files_without_rows_have_none(tmp_path, name, content):
    assert values(write(tmp_path, name, content)) == []


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        values(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="format"):
        values(write(tmp_path, "x.docx", b""))


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=300), name=st.sampled_from(["f.jsonl", "f.json", "f.csv", "f.tsv", "f.txt"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, name):
    path = write(tmp_path_factory.getbasetemp(), name, content)
    try:
        found = read(path)
    except DataError as error:
        assert name == "f.json" and error.fix
        return
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\x00" in content[:2]  # a newline of more than a byte
    assert wide or all(1 <= line <= content.count(b"\n") + 1 for _, line in found)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=5), ascii=st.booleans())
def test_what_json_writes_is_read_back(tmp_path_factory, rows, ascii):
    base = tmp_path_factory.getbasetemp()
    rows = [{**row, "n": 1} for row in rows]
    text = "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in rows)
    assert values(write(base, "g.jsonl", text.encode("utf-8"))) == rows
    assert values(write(base, "g.json", json.dumps(rows, ensure_ascii=ascii).encode("utf-8"))) == rows
