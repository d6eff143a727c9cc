"""Every row read ends somewhere, exactly once; the same seed gives the same rows; bad data is a clear error."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift.config.data import DataOptions
from swift.data import load_rows, write_rows
from swift.data.read import read_file
from swift.data.select import select
from swift.errors import DataError, SwiftError, UsageError


def rows(n, tag=""):
    return [{"query": f"q{tag}{i}", "response": f"a{i}"} for i in range(n)]


def save(path: Path, values, tail: bytes = b"") -> str:
    path.write_bytes("".join(json.dumps(v) + "\n" for v in values).encode() + tail)
    return str(path)


def queries(loaded_rows):
    return [row["messages"][0]["content"] for row in loaded_rows]


def load(*dataset, **options):
    return load_rows(DataOptions(dataset=dataset, **options))


def test_rows_know_their_file_and_line(tmp_path):
    file = save(tmp_path / "x.jsonl", rows(5))
    loaded = load(file, dataset_shuffle=False)
    assert queries(loaded.train) == [f"q{i}" for i in range(5)]
    assert [str(row.source) for row in loaded.train] == [f"{file}:{i}" for i in range(1, 6)]
    assert str(loaded.source(loaded.train[3].index)) == f"{file}:4"


def test_shuffle_is_a_permutation_by_the_seed(tmp_path):
    file = save(tmp_path / "x.jsonl", rows(50))
    a, b, c = (queries(load(file, data_seed=seed).train) for seed in (1, 1, 2))
    assert a == b != c and sorted(a) == sorted(c) == sorted(f"q{i}" for i in range(50))


@pytest.mark.parametrize("n, full, rest", [(4, 0, 4), (10, 1, 0), (25, 2, 5)])
def test_number_of_rows(tmp_path, n, full, rest):
    file = save(tmp_path / "x.jsonl", rows(10))
    loaded = load(f"{file}#{n}")
    counts = np.unique(queries(loaded.train), return_counts=True)[1]
    assert len(loaded.train) == n and sorted(counts)[-rest:] == [full + 1] * rest if rest else [full] * 10
    report = loaded.report.datasets[0]
    assert (report.train, report.unsampled, report.repeated) == (n, max(0, 10 - n), max(0, n - 10))
    assert loaded.report.problems() == []
    assert queries(load(f"{file}#{n}", dataset_shuffle=False).train)[: min(n, 10)] == [
        f"q{i}" for i in range(min(n, 10))
    ]


def test_several_data_sets_are_mixed(tmp_path):
    a, b = save(tmp_path / "a.jsonl", rows(6, "a")), save(tmp_path / "b.jsonl", rows(3, "b"))
    found = queries(load(f"{a}#4", b).train)
    assert len(found) == 7 and sum(q.startswith("qb") for q in found) == 3
    assert found != sorted(found)


@pytest.mark.parametrize("ratio, size", [(0.1, 10), (0.001, 1), (0.5, 50), (1.0, 100)])
def test_split_is_disjoint_and_complete(tmp_path, ratio, size):
    file = save(tmp_path / "x.jsonl", rows(100))
    loaded = load(file, split_dataset_ratio=ratio, data_seed=3)
    train, val = queries(loaded.train), queries(loaded.val)
    assert len(val) == size and sorted(train + val) == sorted(f"q{i}" for i in range(100))
    again = load(file, split_dataset_ratio=ratio, data_seed=3)
    assert (queries(again.train), queries(again.val)) == (train, val)


def test_repeats_never_reach_the_other_side_of_the_split(tmp_path):
    file = save(tmp_path / "x.jsonl", rows(10))
    loaded = load(f"{file}#45", split_dataset_ratio=0.2)
    assert len(loaded.val) == 2 and len(loaded.train) == 43
    assert not set(queries(loaded.train)) & set(queries(loaded.val))
    assert loaded.report.problems() == []


@pytest.mark.parametrize("stopping", ["first_exhausted", "all_exhausted"])
def test_interleaving_by_probabilities(tmp_path, stopping):
    files = (save(tmp_path / "a.jsonl", rows(600, "a")), save(tmp_path / "b.jsonl", rows(300, "b")))
    mix = {"interleave_prob": (0.8, 0.2), "stopping_strategy": stopping}
    loaded = load_rows(DataOptions(dataset=files, **mix))
    found = queries(loaded.train)
    a, b = [q for q in found if q.startswith("qa")], [q for q in found if q.startswith("qb")]
    assert 0.72 < len(a) / len(found) < 0.88
    if stopping == "first_exhausted":
        assert len(a) == len(set(a)) == 600 and len(b) == len(set(b)) < 300
    else:
        assert len(set(a)) == 600 and len(b) == len(set(b)) == 300 and len(a) > 1000
    assert found != a + b and loaded.report.problems() == []
    assert queries(load_rows(DataOptions(dataset=files, **mix)).train) == found


@pytest.mark.parametrize("probabilities", [(1.0,), (0.5, 0.6), (1.0, 0.0), (1.5, -0.5)])
def test_wrong_probabilities_are_a_usage_error(tmp_path, probabilities):
    file = save(tmp_path / "a.jsonl", rows(3))
    with pytest.raises(UsageError, match="interleave_prob"):
        load_rows(DataOptions(dataset=(file, file), interleave_prob=probabilities))


def test_val_dataset(tmp_path):
    a, b = save(tmp_path / "a.jsonl", rows(6)), save(tmp_path / "b.jsonl", rows(3, "v"))
    loaded = load(a, val_dataset=(b,), split_dataset_ratio=0.5)
    assert len(loaded.train) == 6 and queries(loaded.val) == ["qv0", "qv1", "qv2"]
    assert any("split_dataset_ratio" in remark for remark in loaded.report.remarks)
    assert loaded.report.problems() == []
    assert [len(load(val_dataset=(b,)).train), len(load(val_dataset=(b,)).val)] == [0, 3]


def test_each_broken_row_is_counted_where_it_stands(tmp_path):
    file = tmp_path / "x.jsonl"
    lines = [
        '{"query": "q", "response": "a"}',
        "{broken",
        '{"foo": 1}',
        '{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "b"}]}',
        "",
        '{"messages": [{"role": "wizard", "content": "x"}]}',
        '{"query": "q", "response": "\\ud83d"}',
        '{"text": "plain"}',
    ]
    file.write_text("\n".join(lines))
    loaded = load(str(file), dataset_shuffle=False)
    count = loaded.report.datasets[0]
    assert (count.read, count.usable, len(loaded.train)) == (7, 3, 3)
    places = {reason: found[0][0] for reason, found in count.drops.places.items()}
    assert places == {
        "broken JSON": f"{file}:2",
        "unknown columns": f"{file}:3",
        "unknown role": f"{file}:6",
        "half a surrogate pair": f"{file}:7",
    }
    assert loaded.report.problems() == []
    with pytest.raises(DataError, match=f"4 of 7 rows.*{file}:2"):
        load(str(file), strict=True)
    with pytest.raises(DataError, match="57.1% of the rows"):
        load(str(file), max_drop_ratio=0.5)
    load(str(file), max_drop_ratio=0.6)


def test_data_that_gives_nothing_is_an_error(tmp_path):
    with pytest.raises(DataError):
        load(str(tmp_path / "missing.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no rows"):
        load(str(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="none of its 2 rows.*unknown columns") as error:
        load(save(tmp_path / "bad.jsonl", [{"foo": 1}, {"foo": 2}]))
    assert "--columns" in error.value.fix and "bad.jsonl" in error.value.where
    with pytest.raises(UsageError, match="no subsets"):
        load(save(tmp_path / "x.jsonl", rows(1)) + ":sub")
    with pytest.raises(DataError, match="not valid JSON"):
        (tmp_path / "x.json").write_text('[{"query": "q", "response": "a"},')
        load(str(tmp_path / "x.json"))


def test_rows_without_an_answer_are_for_inference(tmp_path):
    file = save(tmp_path / "x.jsonl", [{"messages": [{"role": "user", "content": "q"}]}, {"query": "p"}])
    with pytest.raises(DataError):
        load(file)
    assert queries(load_rows(DataOptions(dataset=(file,), dataset_shuffle=False), need_response=False).train) == [
        "q",
        "p",
    ]


def test_what_is_not_used_of_a_row_is_said(tmp_path):
    row = {"problem": "q", "solution": "s", "answer": "a", "level": 1, "type": "x"}
    report = load(save(tmp_path / "x.jsonl", [row] * 3)).report
    text = report.to_text()
    assert "3 x the answer read from column solution, not from answer" in text
    assert "columns not used: " in text and "level" in text and "type" in text
    assert report.to_json()["datasets"][0]["unused_columns"] == {"level": 3, "type": 3}


def test_columns_option(tmp_path):
    file = save(tmp_path / "x.jsonl", [{"a": "q", "b": "r", "query": "not this"}])
    loaded = load(file, columns={"a": "query", "b": "response"})
    assert loaded.train[0] == {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]}


IDENTITY = [
    {"query": "Who are you?", "response": "I am {{NAME}}, made by {{AUTHOR}}.", "tag": "en"},
    {"query": "你是谁？", "response": "我是{{NAME}}，来自{{AUTHOR}}。", "tag": "zh"},
    {"instruction": "hi", "output": "I am {{name}} by {{author}}"},
]


def test_identity_rows_are_filled(tmp_path):
    file = save(tmp_path / "x.jsonl", IDENTITY)
    loaded = load(file, model_name=("小黄", "Xiao Huang"), model_author=("魔搭", "ModelScope"), dataset_shuffle=False)
    answers = [row["messages"][1]["content"] for row in loaded.train]
    assert answers == ["I am Xiao Huang, made by ModelScope.", "我是小黄，来自魔搭。", "I am Xiao Huang by ModelScope"]
    assert loaded.report.datasets[0].filled == 3
    quoted = load(file, model_name=('A "\\1" {{NAME}}',), model_author=("B",), dataset_shuffle=False)
    assert quoted.train[0]["messages"][1]["content"] == 'I am A "\\1" {{NAME}}, made by B.'


def test_identity_rows_need_a_name(tmp_path):
    with pytest.raises(UsageError, match="--model_name and --model_author"):
        load(save(tmp_path / "x.jsonl", IDENTITY))
    with pytest.raises(UsageError, match="--model_author") as error:
        load(save(tmp_path / "x.jsonl", IDENTITY), model_name=("x",))
    assert "--model_name" not in error.value.what


def test_braces_in_code_are_left_alone(tmp_path):
    code = {"query": "Write a Vue template", "response": "<p>{{name}}</p>"}
    file = save(tmp_path / "x.jsonl", [code, *rows(9)])
    for names in ((), ("x",)):
        loaded = load(file, model_name=names, model_author=names, dataset_shuffle=False)
        assert loaded.train[0]["messages"][1]["content"] == "<p>{{name}}</p>"


def test_shipped_identity_data():
    loaded = load("swift/self-cognition#20", model_name=("小黄", "Xiao Huang"), model_author=("我", "Me"))
    text = json.dumps([dict(row) for row in loaded.train], ensure_ascii=False)
    assert len(loaded.train) == 20 and "{{" not in text
    with pytest.raises(UsageError):
        load("swift/self-cognition")


def test_what_is_written_is_read_back(tmp_path):
    values = [
        *rows(3),
        {"text": "once\u2028upon"},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": False},
        {
            "conversations": [
                {"from": "human", "value": "é"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "a"},
            ],
            "tools": '[{"name": "f"}]',
        },
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss": False}]},
    ]
    (tmp_path / "i.png").write_bytes(b"x")
    values.append({"query": "see", "response": "a", "images": ["i.png"]})
    first = load(save(tmp_path / "x.jsonl", values), dataset_shuffle=False).train
    write_rows(tmp_path / "val_dataset.jsonl", first)
    again = load(str(tmp_path / "val_dataset.jsonl"), dataset_shuffle=False).train
    assert [dict(row) for row in again] == [dict(row) for row in first] and len(first) == len(values)


def test_rows_of_a_file_in_the_form_of_ms_swift_val_datasets(tmp_path):
    texts = [json.dumps({"role": "user", "content": "q"}), json.dumps({"role": "assistant", "content": "a"})]
    assert len(load(save(tmp_path / "x.jsonl", [{"messages": texts}] * 3)).train) == 3


def test_a_folder_and_its_subsets(tmp_path):
    for sub in ("en", "zh"):
        (tmp_path / "d" / sub).mkdir(parents=True)
        save(tmp_path / "d" / sub / "train.jsonl", rows(2, sub))
        save(tmp_path / "d" / sub / "test.jsonl", rows(2, sub + "test"))
    assert sorted(queries(load(str(tmp_path / "d")).train)) == ["qen0", "qen1", "qzh0", "qzh1"]
    assert sorted(queries(load(str(tmp_path / "d") + ":zh").train)) == ["qzh0", "qzh1"]


def test_duplicates_are_counted(tmp_path):
    file = save(tmp_path / "x.jsonl", rows(4) + rows(2))
    report = load(file).report
    assert report.duplicates == 2
    assert load(f"{file}#12").report.duplicates == 2
    val = save(tmp_path / "v.jsonl", rows(1) + rows(1, "new"))
    assert load(file, val_dataset=(val,)).report.val_in_train == 1


def test_llama_factory_dataset_info(tmp_path):
    save(tmp_path / "a.jsonl", [{"question": "q", "answer": "a", "context": "s", "query": "x", "prompt": "y"}])
    (tmp_path / "b.json").write_text(
        json.dumps([{"dialog": [{"who": "U", "what": "q"}, {"who": "B", "what": "a"}]}] * 3)
    )
    (tmp_path / "k.json").write_text(json.dumps([{"conversations": [], "ok": True}]))
    info = {
        "mine": {"file_name": "a.jsonl", "columns": {"prompt": "question", "response": "answer", "system": "context"}},
        "talk": {
            "file_name": "b.json",
            "formatting": "sharegpt",
            "num_samples": 2,
            "columns": {"messages": "dialog"},
            "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "U", "assistant_tag": "B"},
        },
        "far": {"hf_hub_url": "org/far", "ms_hub_url": "org/near", "subset": "en"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    for options in ({"dataset_dir": str(tmp_path)}, {"custom_dataset_info": (str(tmp_path / "dataset_info.json"),)}):
        row = load("mine", **options).train[0]
        assert [m["content"] for m in row["messages"]] == ["s", "q", "a"]
        talk = load("talk", **options).train
        assert len(talk) == 2 and [m["content"] for m in talk[0]["messages"]] == ["q", "a"]
        asked = []

        def resolve(name, asked=asked, **how):
            asked.append((name, how["use_hf"], how["subsets"]))
            raise DataError("stop")

        for use_hf in (True, False):
            with pytest.raises(DataError, match="stop"):
                load_rows(DataOptions(dataset=("far",), **options), use_hf=use_hf, resolve=resolve)
        assert asked == [("org/far", True, ("en",)), ("org/near", False, ("en",))]


LF_FORMS = {
    "plain text": ([{"body": "x"}, {"body": "y"}], {"columns": {"prompt": "body"}}, [{"text": "x"}, {"text": "y"}]),
    "a renamed question": (
        [{"ask": "q", "output": "a"}],
        {"columns": {"prompt": "ask"}},
        [{"messages": [("user", "q"), ("assistant", "a")]}],
    ),
    "ranked, two answers in a list": (
        [{"instruction": "q", "input": "", "output": ["g", "b"]}],
        {"ranking": True},
        [
            {
                "messages": [("user", "q"), ("assistant", "g")],
                "rejected_messages": [("user", "q"), ("assistant", "b")],
            }
        ],
    ),
    "ranked, named columns": (
        [{"talk": [{"who": "U", "what": "q"}], "best": {"who": "B", "what": "g"}, "worst": {"who": "B", "what": "b"}}],
        {
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {"messages": "talk", "chosen": "best", "rejected": "worst"},
            "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "U", "assistant_tag": "B"},
        },
        [{"messages": [("user", "q"), ("assistant", "g")], "rejected_messages": [("user", "q"), ("assistant", "b")]}],
    ),
    "kto": (
        [{"ask": "q", "say": "a", "fine": False}],
        {"columns": {"prompt": "ask", "response": "say", "kto_tag": "fine"}},
        [{"messages": [("user", "q"), ("assistant", "a")], "label": False}],
    ),
    "history and system": (
        [{"ask": "q2", "say": "a2", "sys": "s", "before": [["q", "a"]]}],
        {"columns": {"prompt": "ask", "response": "say", "system": "sys", "history": "before"}},
        [{"messages": [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "q2"), ("assistant", "a2")]}],
    ),
}


@pytest.mark.parametrize("form", LF_FORMS)
def test_entries_of_llama_factorys_dataset_info(tmp_path, form):
    values, entry, expected = LF_FORMS[form]
    (tmp_path / "x.json").write_text(json.dumps(values))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "x.json", **entry}}))

    def plain(name, value):
        return [(m["role"], m["content"]) for m in value] if name.endswith("messages") else value

    found = load("mine", dataset_dir=str(tmp_path), dataset_shuffle=False).train
    assert [{name: plain(name, value) for name, value in row.items()} for row in found] == expected


def test_ms_swift_dataset_info(tmp_path):
    save(tmp_path / "a.jsonl", [{"q1": "q", "a1": "a", "history": "junk"}])
    info = [
        {
            "dataset_name": "mine",
            "dataset_path": "a.jsonl",
            "columns": {"q1": "query", "a1": "response", "history": "_"},
        }
    ]
    (tmp_path / "i.json").write_text(json.dumps(info))
    row = load("mine", custom_dataset_info=(str(tmp_path / "i.json"),)).train[0]
    assert [m["content"] for m in row["messages"]] == ["q", "a"]


@pytest.mark.parametrize("text", ["{", "[1]", '"x"', '{"a": 1}'])
def test_a_broken_info_file_is_an_error(tmp_path, text):
    (tmp_path / "i.json").write_text(text)
    with pytest.raises(DataError, match=r"i\.json"):
        load("mine", custom_dataset_info=(str(tmp_path / "i.json"),))


@given(
    size=st.integers(1, 40),
    wanted=st.none() | st.integers(1, 130),
    ratio=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.99, 1.0]),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_selection_adds_up(size, wanted, ratio, shuffle, seed):
    chosen = select(size, wanted, ratio, shuffle, np.random.RandomState(seed))
    train, val = list(chosen.train), list(chosen.val)
    assert not set(train) & set(val) and len(set(val)) == len(val)
    assert set(train) | set(val) <= set(range(size))
    target = size if wanted is None else wanted
    distinct = min(size, target)
    assert len(set(train) | set(val)) == distinct
    assert bool(val) == (ratio > 0 and distinct > 1)
    if train:
        assert len(train) + len(val) == target
        counts = np.unique(train, return_counts=True)[1]
        assert counts.max() - counts.min() <= 1


BYTES = st.lists(
    st.sampled_from(
        [b'{"query": "q", "response": "a"}', b"\xff\x00", b'{"text": "\\ud800"}', b"[1]", b'{"messages":[]}']
    )
    | st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b"")),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(lines=BYTES, ending=st.sampled_from([b"\n", b"\r\n"]))
def test_fuzzed_lines_are_all_accounted_for(tmp_path_factory, lines, ending):
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    good = b'{"query": "first", "response": "a"}'
    path.write_bytes(ending.join([good, *lines]))
    try:
        loaded = load(str(path))
    except SwiftError as error:
        raise AssertionError("one good row is there") from error
    count = loaded.report.datasets[0]
    filled = [line for line in lines if line.strip()]
    assert count.read == 1 + len(filled) and loaded.report.problems() == []
    assert count.usable >= 1 + sum(line == b'{"query": "q", "response": "a"}' for line in lines)


def test_big_files_are_read_once(tmp_path, monkeypatch):
    from swift.data import row_cache, sources

    file = tmp_path / "x.jsonl"
    save(file, rows(50))
    with open(file, "a") as end:
        end.write('{"foo": 1}\n' + json.dumps(rows(1)[0]) + "\n")
    options = DataOptions(dataset=(f"{file}#40",), split_dataset_ratio=0.1)
    plain = load_rows(options)
    monkeypatch.setattr(row_cache, "LEAST_BYTES", 0)
    reads = []
    monkeypatch.setattr(sources, "read_file", lambda path: reads.append(path) or read_file(path))

    def facts(loaded):
        kept = [r for r in loaded.report.remarks if "cache" not in r]
        return {**loaded.report.to_json(), "remarks": kept}, [
            [(r, r.source, r.index) for r in s] for s in (loaded.train, loaded.val)
        ]

    cache = tmp_path / "cache"
    first, second = (load_rows(options, cache=cache) for _ in range(2))
    assert facts(first) == facts(second) == facts(plain) and len(reads) == 1
    assert first.train.digest() == second.train.digest() == plain.train.digest()
    (entry,) = [path for path in cache.iterdir() if path.is_dir()]
    os.truncate(entry / "text.bin", 10)
    assert facts(load_rows(options, cache=cache)) == facts(plain) and len(reads) == 2
    for changed in (dict(data_seed=1), dict(columns={"a": "b"}), dict(strict=False, dataset=(f"{file}#41",))):
        load_rows(dataclasses.replace(options, **changed), cache=cache)
    assert len(reads) == 5
    with open(file, "a") as end:
        end.write(json.dumps(rows(2)[1]) + "\n")
    assert load_rows(options, cache=cache).report.rows_read == 53 and len(reads) == 6


def test_rows_in_lists_and_bare_conversations(tmp_path):
    talk = [{"role": "user", "content": "qt"}, {"role": "assistant", "content": "a"}]
    lines = [rows(2, "x"), talk, [talk, {"query": "z", "response": "a"}], [], [1], talk[1]]
    loaded = load(save(tmp_path / "x.jsonl", lines), dataset_shuffle=False)
    assert queries(loaded.train) == ["qx0", "qx1", "qt", "z"]
    drops = loaded.report.datasets[0].drops
    assert drops.counts == {"the row is no object": 3, "a message outside a conversation": 1}
    assert loaded.report.rows_read == 8 and loaded.train.source(3).line == 3


def test_several_answers_are_no_answer(tmp_path):
    file = save(tmp_path / "x.jsonl", [{"query": "q", "response": ["a"]}, {"query": "q", "response": ["a", "b"]}])
    loaded = load(file)
    assert [row["messages"][-1]["content"] for row in loaded.train] == ["a"]
    assert loaded.report.datasets[0].drops.counts == {"several answers in one row": 1}
