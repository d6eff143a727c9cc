"""Data set names become local files: paths, the local collection, shipped data, splits and subsets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swift.errors import DataError
from swift.hub import resolve_dataset


def write(path: Path, text: str = '{"query": "q", "response": "r"}\n') -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def fails(name: str, *words: str, **options) -> None:
    with pytest.raises(DataError) as caught:
        resolve_dataset(name, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def relative(found, root: Path) -> list[str]:
    return [file.relative_to(root).as_posix() for file in found.files]


def test_file_is_itself_whatever_its_name(tmp_path):
    path = write(tmp_path / "gsm8k.jsonl")
    found = resolve_dataset(str(path))
    assert found.files == (path,) and found.source == "file" and found.entry is None


@pytest.mark.parametrize(
    "place", ["alpaca-gpt4-data-zh.jsonl", "AI-ModelScope/alpaca-gpt4-data-zh.json", "alpaca-gpt4-data-zh/d.csv"]
)
@pytest.mark.parametrize("name", ["AI-ModelScope/alpaca-gpt4-data-zh", "alpaca-gpt4-data-zh", "alpaca-zh"])
def test_local_collection(tmp_path, monkeypatch, place, name):
    path = write(tmp_path / "data" / place)
    monkeypatch.setenv("SWIFT_DATASET_DIR", str(tmp_path / "data"))
    found = resolve_dataset(name)
    assert found.files == (path,) and found.entry.id == "AI-ModelScope/alpaca-gpt4-data-zh"
    monkeypatch.delenv("SWIFT_DATASET_DIR")
    assert resolve_dataset(name, dataset_dir=str(tmp_path / "data")).files == (path,)


def test_own_data_in_the_default_collection():
    write(Path("datasets/mine.jsonl"))
    assert resolve_dataset("mine").files == (Path("datasets/mine.jsonl"),)


def test_self_cognition_is_shipped():
    found = resolve_dataset("swift/self-cognition")
    assert found.source == "package"
    rows = [json.loads(line) for line in found.files[0].read_text(encoding="utf-8").splitlines()]
    assert len(rows) == found.entry.rows


def test_shipped_data_set_where_a_directory_has_the_owners_name():
    Path("swift").mkdir()
    assert resolve_dataset("swift/self-cognition").source == "package"


def test_directory_reads_its_train_split_and_no_description(tmp_path):
    for name in ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-0.parquet"):
        write(tmp_path / name)
    write(tmp_path / "dataset_infos.json")
    write(tmp_path / "README.txt")
    write(tmp_path / ".cache/old.jsonl")
    found = resolve_dataset(str(tmp_path))
    assert found.split == "train"
    assert relative(found, tmp_path) == ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    assert relative(resolve_dataset(str(tmp_path), split="test"), tmp_path) == ["data/test-0.parquet"]
    fails(str(tmp_path), "validation", "train", split="validation")


def test_directory_without_splits_reads_all(tmp_path):
    write(tmp_path / "a.jsonl")
    write(tmp_path / "sub/b.jsonl.gz")
    found = resolve_dataset(str(tmp_path))
    assert found.split is None and relative(found, tmp_path) == ["a.jsonl", "sub/b.jsonl.gz"]


def test_a_word_that_holds_train_is_no_split(tmp_path):
    write(tmp_path / "training_notes.jsonl")
    write(tmp_path / "constraints.jsonl")
    assert len(resolve_dataset(str(tmp_path)).files) == 2


def test_subsets(tmp_path):
    for name in ("en/train.jsonl", "zh/train.jsonl", "zh/test.jsonl", "fr.jsonl"):
        write(tmp_path / name)
    assert relative(resolve_dataset(str(tmp_path), subsets=["zh"]), tmp_path) == ["zh/train.jsonl"]
    both = resolve_dataset(str(tmp_path), subsets=["en", "zh"])
    assert relative(both, tmp_path) == ["en/train.jsonl", "zh/train.jsonl"]
    assert relative(resolve_dataset(str(tmp_path), subsets=["fr"]), tmp_path) == ["fr.jsonl"]
    fails(str(tmp_path), "'ja'", "en", "zh", subsets=["ja"])


def test_wrong_names(tmp_path):
    write(tmp_path / "alpaca_data.jsonl")
    fails(str(tmp_path / "alpaca_dat.jsonl"), "no such file", "alpaca_data.jsonl")
    fails("missing.jsonl", "no such file")
    fails("alpaca-gpt4-data-zn", "AI-ModelScope/alpaca-gpt4-data-zh")
    fails("qqqqqqqq", "list-datasets")
    (tmp_path / "empty").mkdir()
    fails(str(tmp_path / "empty"), "no data file")


def test_prefix_means_a_hub_and_never_a_path():
    write(Path("swift/self-cognition/rows.jsonl"))
    assert resolve_dataset("swift/self-cognition").source == "directory"
    assert resolve_dataset("MS::swift/self-cognition").source == "package"
