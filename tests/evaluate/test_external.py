"""OpenCompass and EvalScope: what is written for them, what is read from them, and a run of each in its environment."""

import json
import os

import pytest

from swift.cli import main
from swift.environments import find
from swift.errors import UsageError
from swift.evaluate.benchmarks import find_benchmark
from swift.evaluate.data import Wish, load_documents
from swift.evaluate.evalscope import EvalScope, write_layout
from swift.evaluate.external import Asked, ToolError
from swift.evaluate.opencompass import OpenCompass, _write, config_text
from tests import tiny
from tests.evaluate.material import arc, write_jsonl, write_mmlu

RECORD = {"origin_prompt": "Q", "prediction": "B", "gold": "B"}


@pytest.fixture
def documents(tmp_path):
    write_jsonl(tmp_path / "data" / "arc_challenge.jsonl", arc(4))
    write_mmlu(tmp_path / "data", ["anatomy"])
    place = str(tmp_path / "data")
    return {
        "ARC_c": load_documents(find_benchmark("ARC_c"), Wish(local_dataset=place, limit=4)),
        "MMLU": load_documents(find_benchmark("MMLU"), Wish(local_dataset=place, subjects=("anatomy",), shots=5)),
    }


def asked(tmp_path, documents, **changes):
    values = dict(
        sets=("ARC_c", "MMLU"), documents=documents, arguments={}, generation={"max_gen_toks": 9, "seed": 1}, limit=3,
        parallel=2, extra={}, url="http://127.0.0.1:1/v1", model="tiny", key="EMPTY", folder=tmp_path,
    )  # fmt: skip
    return Asked(**(values | changes))


@pytest.mark.parametrize("backend", ["OpenCompass", "evalscope"])
def test_without_the_environment_the_error_is_the_command(backend, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SWIFT_ENV_DIR", str(tmp_path))
    words = ["eval", "--model", "nowhere", "--infer_backend", "pt", "--eval_backend", backend]
    assert main([*words, "--eval_dataset", "ARC_c", "MMLU"]) == 2
    assert f"swift env create {backend.lower()}" in capsys.readouterr().err


def test_the_configuration_names_data_endpoint_and_limits(tmp_path, documents):
    modules = {"ARC_c": "ARC_c.ARC_c_gen_1e0de5", "MMLU": "mmlu.mmlu_gen_4d595a"}
    paths = {"ARC_c": tmp_path / "a.jsonl", "MMLU": tmp_path / "m"}
    text = config_text(asked(tmp_path, documents), modules, paths, tmp_path / "tokenizer")
    compile(text, "config", "exec")
    assert "from opencompass.configs.datasets.mmlu.mmlu_gen_4d595a import mmlu_datasets as set_1" in text
    assert "test_range='[:3]'" in text and "if _one['name'] in ['anatomy']" in text
    assert "'openai_api_base': 'http://127.0.0.1:1/v1'" in text and "'max_out_len': 9" in text and "{'seed': 1}" in text


def test_documents_in_the_layouts_of_opencompass(tmp_path, documents):
    row = json.loads(_write("ARC_c", documents["ARC_c"], tmp_path / "a").read_text().splitlines()[1])
    assert row["answerKey"] == "B" and row["question"]["choices"][3]["label"] == "D"
    folder = _write("MMLU", documents["MMLU"], tmp_path / "m")
    assert (folder / "test" / "anatomy_test.csv").read_text().splitlines()[1].endswith("four,B")
    assert len((folder / "dev" / "anatomy_dev.csv").read_text().splitlines()) == 5


def test_results_of_opencompass_are_read_by_benchmark(tmp_path, documents):
    out = tmp_path / "opencompass" / "out" / "20260101_000000"
    for abbr, value in (
        ("MMLU@lukaemon_mmlu_anatomy", 50.0),
        ("MMLU@lukaemon_mmlu_virology", 100.0),
        ("ARC_c@ARC-c", 25.0),
    ):
        for kind, content in (
            ("predictions", {str(i): RECORD for i in range(2 if "anatomy" in abbr else 4)}),
            ("results", {"accuracy": value, "details": {"0": {"correct": True}}}),
        ):
            path = out / kind / "model" / f"{abbr}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
    results, samples = OpenCompass().read(asked(tmp_path, documents), 8.0)
    assert [(r.benchmark, r.n, round(r.score, 4)) for r in results] == [("ARC_c", 4, 0.25), ("MMLU", 6, 0.8333)]
    assert results[1].subjects["lukaemon_mmlu_virology"]["n"] == 4 and results[0].backend == "OpenCompass"
    assert samples["ARC_c"][0]["value"] == 1.0 and samples["ARC_c"][0]["output"] == "B"
    with pytest.raises(ToolError, match="no result of gsm8k"):
        OpenCompass().read(asked(tmp_path, documents, sets=("gsm8k",)), 1.0)


def test_the_layout_and_the_reviews_of_evalscope(tmp_path, documents):
    write_layout("mmlu", None, documents["MMLU"], tmp_path / "mmlu")
    assert "config_name: all" in (tmp_path / "mmlu" / "README.md").read_text()
    assert json.loads((tmp_path / "mmlu" / "all" / "test.jsonl").read_text().splitlines()[0])["subject"] == "anatomy"
    reviews = tmp_path / "evalscope" / "out" / "20260101_000000" / "reviews" / "tiny"
    said = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "perf_metrics": {"input_tokens": 3}},
    ]
    rows = [
        {"index": i, "target": ["A"], "messages": said,
         "sample_score": {"score": {"value": {"acc": v}, "main_score_name": "acc", "extracted_prediction": e}}}
        for i, (v, e) in enumerate([(1.0, "A"), (0.0, "")])
    ]  # fmt: skip
    write_jsonl(reviews / "arc_ARC-Challenge.jsonl", rows)
    results, samples = EvalScope().read(asked(tmp_path, documents, sets=("ARC_c",)), 1.0)
    assert (results[0].score, results[0].n, results[0].unparsed, results[0].tokens["prompt"]) == (0.5, 2, 1, 6)
    assert [sample["value"] for sample in samples["ARC_c"]] == [1.0, 0.0]
    with pytest.raises(UsageError, match="one benchmark"):
        EvalScope().check(tmp_path, ["ARC_c", "ARC_e"])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["OpenCompass", "EvalScope"])
def test_a_real_run_in_its_environment(backend, tmp_path, monkeypatch, capsys):
    if find(backend.lower(), os.environ.get("SWIFT_ENV_DIR")) is None:
        pytest.skip(f"swift env create {backend.lower()} has not been run")
    monkeypatch.chdir(tmp_path)
    tiny.checkpoint(tmp_path / "model", max_position_embeddings=8192)
    write_jsonl(tmp_path / "data" / "arc_challenge.jsonl", arc(4))
    write_mmlu(tmp_path / "data", ["anatomy"])
    words = ["eval", "--model", "model", "--local_dataset", "data", "--eval_backend", backend, "--eval_limit", "2"]
    words += ["--eval_dataset_args", '{"MMLU": {"subset_list": ["anatomy"]}}']
    words += ["--eval_generation_config", '{"max_tokens": 4}', "--eval_dataset", "ARC_c", "MMLU"]
    code = main(words)
    out = capsys.readouterr()
    assert code == 0, out.err
    record = json.loads(next((tmp_path / "eval_output").rglob("eval_result.json")).read_text())
    assert [(r["benchmark"], r["backend"], r["n"]) for r in record["results"]] == [
        ("ARC_c", backend, 2),
        ("MMLU", backend, 2),
    ]
