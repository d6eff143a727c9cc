"""Files of benchmarks in their published layouts, and what is wrong with them."""

import gzip
import json

import pytest

from swift.errors import DataError, UsageError
from swift.evaluate.benchmarks import benchmarks, find_benchmark
from swift.evaluate.data import Wish, load_documents
from swift.evaluate.rows import SHAPES, last_boxed
from tests.assets import ASSETS
from tests.evaluate.material import arc, write_jsonl, write_mmlu

OPTIONS = ["red", "green", "blue", "white"]
CHOICES = [
    {"query": "Question: Colour?", "choices": OPTIONS, "gold": 2},
    {"question": "Colour?", "choices": {"text": OPTIONS, "label": ["1", "2", "3", "4"]}, "answerKey": "3"},
    {
        "question": {
            "stem": "Colour?",
            "choices": [{"text": t, "label": c} for t, c in zip(OPTIONS, "ABCD", strict=True)],
        },
        "answerKey": "C",
    },
    {"question_stem": "Colour?", "choices": {"text": OPTIONS, "label": list("ABCD")}, "answerKey": "C"},
    {"question": "Colour?", "choices": OPTIONS, "answer": 2, "subject": "x"},
    {"question": "Colour?", "A": "red", "B": "green", "C": "blue", "D": "white", "answer": "C"},
    {"Question": "Colour?", "A": "red", "B": "green", "C": "blue", "D": "white", "Answer": "C"},
    {"question": "Colour?", "choice0": "red", "choice1": "green", "choice2": "blue", "choice3": "white", "answer": "2"},
    {"question": "Colour?", "choices": OPTIONS, "answer": "blue"},
]


@pytest.mark.parametrize("row", CHOICES)
def test_every_layout_of_a_question_with_options(row):
    doc = SHAPES["choices"](row)
    assert (doc["question"], doc["choices"], doc["gold"]) == ("Colour?", OPTIONS, 2)


@pytest.mark.parametrize(
    "shape, row, expected",
    [
        ("winogrande", {"sentence": "The _ ran .", "option1": "cat", "option2": "dog", "answer": "2"},
         {"contexts": ["The cat", "The dog"], "continuation": "ran .", "gold": 1}),
        ("winogrande", {"context_options": ["The cat", "The dog"], "continuation": "ran .", "gold": 1},
         {"contexts": ["The cat", "The dog"], "continuation": "ran .", "gold": 1}),
        ("boolq", {"query": "Passage: P.\nQuestion: is it so?", "choices": ["no", "yes"], "gold": 1},
         {"passage": "P.", "question": "is it so", "gold": 1}),
        ("boolq", {"passage": "P.", "question": "is it so", "answer": True},
         {"passage": "P.", "question": "is it so", "gold": 1}),
        ("math", {"problem": "2", "solution": r"so \boxed{\frac{1}{2}}."}, {"problem": "2", "answer": r"\frac{1}{2}"}),
        ("math", {"problem": "2", "answer": "4"}, {"problem": "2", "answer": "4"}),
        ("qa", {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                             {"role": "assistant", "content": "a"}]}, {"query": "q", "response": "a", "system": "s"}),
    ],
)  # fmt: skip
def test_layouts_of_other_shapes(shape, row, expected):
    assert SHAPES[shape](row) == {**SHAPES[shape](row), **expected}


def test_hellaswag_is_cleaned_as_lm_eval_cleans_it():
    clean = pytest.importorskip("lm_eval.tasks.hellaswag.utils").preprocess
    endings = [" boils  it. [step] Then [substeps] stops.", "x [title] Y", "[header] plain"]
    row = {"activity_label": "Cooking", "ctx_a": "A [header] pot [title] Boil", "ctx_b": "the cook", "endings": endings}
    doc = SHAPES["hellaswag"]({**row, "label": "1"})
    assert doc["question"] == clean("Cooking: A [header] pot [title] Boil The cook")
    assert doc["choices"] == [clean(ending) for ending in endings] and doc["gold"] == 1


def test_the_last_box_is_found_with_its_braces():
    assert last_boxed(r"\boxed{1} then \boxed{\frac{a}{b}} done") == r"\frac{a}{b}"
    assert last_boxed("none") is None and last_boxed(r"\boxed{open") is None


@pytest.mark.parametrize("name", ["ARC-Challenge/test.jsonl", "arc_challenge.jsonl",
                                  "data/ARC/ARC-c/ARC-Challenge-Test.jsonl",
                                  "deep/er/ARC-Challenge/test-00000-of-00001.jsonl"])  # fmt: skip
def test_files_are_found_by_their_published_names(tmp_path, name):
    write_jsonl(tmp_path / name, arc(3))
    write_jsonl(tmp_path / "arc_easy.jsonl", arc(4))
    assert load_documents(find_benchmark("ARC_C"), Wish(local_dataset=str(tmp_path), limit=3)).count == 3


def test_mmlu_without_header_with_header_and_as_one_table(tmp_path):
    write_mmlu(tmp_path, ["anatomy"])
    wish = Wish(local_dataset=str(tmp_path), subjects=("anatomy",), shots=5)
    documents = load_documents(find_benchmark("MMLU"), wish)
    assert len(documents.subjects["anatomy"]) == 2 and len(documents.fewshot["anatomy"]) == 5
    assert documents.subjects["anatomy"][1] == {
        "question": "anatomy, question 1?", "choices": ["one", "two", "three", "four"], "gold": 1,
        "letters": list("ABCD"),
    }  # fmt: skip
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"question": "q", "subject": s, "choices": OPTIONS, "answer": 3} for s in ("anatomy", "virology")]
    (tmp_path / "hf" / "all").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hf" / "all" / "test-00000-of-00001.parquet")
    wish = Wish(local_dataset=str(tmp_path / "hf"), subjects=("virology",))
    assert load_documents(find_benchmark("MMLU"), wish).subjects["virology"][0]["gold"] == 3


def test_truthfulqa_from_its_csv(tmp_path):
    row = {
        "Question": "Q?",
        "Best Answer": "Yes",
        "Correct Answers": "Yes; Yes indeed.",
        "Incorrect Answers": "No; Never",
    }
    doc = SHAPES["truthfulqa"](row)
    assert doc["choices"] == ["Yes", "No.", "Never."] and doc["truths"] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    "content, told",
    [
        (b"", "empty"),
        (b'{"question": "q", "choices": ["a", "b"], "answer": 5}\n', "arc_challenge.jsonl:1"),
        (b'{"question": "q", "choices": ["a", "b"], "answer": 1}\n{"question": "q", "choi', "arc_challenge.jsonl:2"),
    ],
)
def test_empty_wrong_and_cut_files_are_errors(tmp_path, content, told):
    (tmp_path / "arc_challenge.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=told):
        load_documents(find_benchmark("ARC_c"), Wish(local_dataset=str(tmp_path), limit=1))


def test_a_cut_archive_is_an_error(tmp_path):
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in arc(500)).encode())
    (tmp_path / "arc_challenge.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError):
        load_documents(find_benchmark("ARC_c"), Wish(local_dataset=str(tmp_path), limit=1))


def test_names_are_matched_without_case_and_near_ones_are_told():
    assert find_benchmark("Arc-Challenge").name == "ARC_c" and find_benchmark("openbookqa").name == "OBQA"
    with pytest.raises(UsageError, match="did you mean HellaSwag"):
        find_benchmark("helaswag")


def test_every_benchmark_is_consistent():
    for benchmark in benchmarks().values():
        assert benchmark.shape in SHAPES and benchmark.about and (benchmark.licence or benchmark.own)
        assert benchmark.own or (benchmark.rows and set(benchmark.hub) == {"modelscope", "huggingface"})
        assert not benchmark.subjects or len(benchmark.known_subjects) == benchmark.subjects


@pytest.mark.skipif(ASSETS is None, reason="the shared data is not here")
@pytest.mark.parametrize("name", [name for name, b in benchmarks().items() if not b.own and name != "HellaSwag"])
def test_the_published_files_are_whole(name):
    benchmark = find_benchmark(name)
    documents = load_documents(benchmark, Wish(local_dataset=str(ASSETS / "eval"), shots=1))
    assert documents.count >= benchmark.rows and documents.partial is None
