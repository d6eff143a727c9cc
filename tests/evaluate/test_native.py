"""`swift eval` end to end over tiny random models, against lm-evaluation-harness' own model class on the same rows."""

import json

import pytest

from swift.cli import main
from tests import tiny
from tests.evaluate.material import arc, write_jsonl, write_mmlu

pytest.importorskip("lm_eval")
ROWS = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    tiny.checkpoint(folder / "model")
    rows = arc(ROWS)
    rows[3]["choices"]["text"] = rows[3]["choices"]["text"][:3]  # some questions have three options
    write_jsonl(folder / "data" / "ARC-Challenge" / "test.jsonl", rows)
    write_mmlu(folder / "data", ["anatomy", "virology"])
    return folder


@pytest.fixture
def evaluate(place, tmp_path, monkeypatch, capsys):
    def run(*words: str, data: bool = True):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("SWIFT_CACHE", str(tmp_path / "cache"))
        where = ["--model", str(place / "model")]
        code = main(["eval", *where, *(["--local_dataset", str(place / "data")] if data else []), *words])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def newest(tmp_path, model="model"):
    return max((tmp_path / "eval_output" / model).glob("v*"), key=lambda path: path.stat().st_mtime)


def samples(folder, name):
    return [json.loads(line) for line in (folder / "samples" / f"{name}.jsonl").read_text().splitlines()]


def test_decisions_and_logprobs_are_those_of_lm_eval_by_hand(place, evaluate, tmp_path):
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    task = {
        "task": "by_hand",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(place / "data" / "ARC-Challenge" / "test.jsonl")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{choices.label.index(answerKey)}}",
        "doc_to_choice": "{{choices.text}}",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    }
    model = HFLM(pretrained=str(place / "model"), dtype="float32", device="cpu", batch_size=4)
    reference = lm_eval.simple_evaluate(model, tasks=[task], log_samples=True, bootstrap_iters=1)
    code, out, err = evaluate("--eval_dataset", "arc_C", "--eval_limit", str(ROWS), "--torch_dtype", "float32")
    assert code == 0, err
    result = json.loads((newest(tmp_path) / "eval_result.json").read_text())["results"][0]
    own, theirs = samples(newest(tmp_path), "ARC_c"), reference["samples"]["by_hand"]
    for ours, one in zip(own, theirs, strict=True):
        assert ours["logprobs"] == pytest.approx([response[0][0] for response in one["resps"]], abs=1e-3)
        assert ours["value"] == one["acc_norm"]
    for metric in ("acc", "acc_norm"):
        expected = reference["results"]["by_hand"]
        assert result["metrics"][metric]["score"] == pytest.approx(expected[f"{metric},none"])
        assert result["metrics"][metric]["stderr"] == pytest.approx(expected[f"{metric}_stderr,none"])
    assert (result["n"], result["mode"], result["shots"], result["split"]) == (ROWS, "log-likelihood", 0, "test")
    assert "ARC_c" in out and "1172" in err  # the file is said to be a part of the set


def test_subjects_with_examples_and_categories(evaluate, tmp_path):
    arguments = json.dumps({"mmlu": {"subset_list": ["anatomy", "virology"]}})
    code, _, err = evaluate("--eval_dataset", "mmlu", "--eval_dataset_args", arguments)
    assert code == 0, err
    result = json.loads((newest(tmp_path) / "eval_result.json").read_text())["results"][0]
    assert {name: part["n"] for name, part in result["subjects"].items()} == {"anatomy": 2, "virology": 2}
    assert {name: part["n"] for name, part in result["categories"].items()} == {"stem": 2, "other": 2}
    prompt = samples(newest(tmp_path), "MMLU")[0]["prompt"]
    assert prompt.startswith("The following are multiple choice questions (with answers) about anatomy.\n\nanatomy, q")
    assert prompt.count("Answer:") == 6 and prompt.endswith("\nD. four\nAnswer:")


def test_own_questions_and_answers(evaluate, tmp_path):
    write_jsonl(tmp_path / "own" / "trivia.jsonl", [{"query": "Say hello", "response": "hello"}] * 3)
    arguments = json.dumps({"general_qa": {"local_path": str(tmp_path / "own"), "subset_list": ["trivia"]}})
    settings = ("--eval_generation_config", '{"max_tokens": 4}')
    code, out, err = evaluate("--eval_dataset", "general_qa", "--eval_dataset_args", arguments, *settings, data=False)
    assert code == 0, err
    result = json.loads((newest(tmp_path) / "eval_result.json").read_text())["results"][0]
    assert {"rouge_1", "rouge_l", "bleu_4", "exact_match"} <= result["metrics"].keys()
    assert result["prompts"] == "chat template" and result["tokens"]["generated"] == 12
    assert "<|im_start|>user\nSay hello<|im_end|>" in samples(newest(tmp_path), "general_qa")[0]["prompt"]
    page = (newest(tmp_path) / "report.html").read_text()
    assert "rouge_l" in page and "<script" not in page and "http" not in page


def test_a_run_is_compared_with_an_earlier_one(evaluate, tmp_path):
    options = ("--eval_dataset", "ARC_c", "--eval_limit", str(ROWS))
    assert evaluate(*options)[0] == 0
    first = newest(tmp_path)
    code, out, err = evaluate(*options, "--compare", str(first))
    assert code == 0 and newest(tmp_path) != first
    assert "no difference beyond chance" in out and "+0.00" in out


def test_the_table_and_the_report_are_chinese_where_the_language_is(evaluate, tmp_path, monkeypatch):
    monkeypatch.setenv("SWIFT_LANG", "zh")
    code, out, err = evaluate("--eval_dataset", "ARC_c", "--eval_limit", "2")
    assert code == 0 and "评测集" in out and "对数似然" in out
    assert f"ARC_c: ARC_c 的 1172 行里只有 {ROWS} 行" in err
    page = (newest(tmp_path) / "report.html").read_text()
    assert '<html lang="zh">' in page and "评测报告" in page and "benchmark" not in page


@pytest.mark.parametrize(
    "words, told",
    [
        (["--eval_dataset", "arc_cc"], "did you mean ARC_c"),
        (["--eval_dataset", "ARC_c", "--eval_limit", "13"], "12 of the 1172 rows"),
        (["--eval_dataset", "ARC_c"], "--eval_limit 12 says that you mean these rows"),
        (["--eval_dataset", "mmlu"], "2 of the 57 subjects"),
        (["--eval_dataset", "HumanEval"], "--allow_code_execution true"),
        (
            ["--eval_dataset", "ARC_c", "--eval_dataset_args", '{"arc_c": {"local_pat": "x"}}'],
            "did you mean local_path",
        ),
        (["--eval_dataset", "ARC_c", "--eval_dataset_args", '{"piqa": {}}'], "not among"),
        (["--eval_dataset", "ARC_c", "--eval_generation_config", '{"max_tokens": 0}'], "number of tokens"),
        (["--eval_dataset", "general_qa"], "is your own data"),
        (["--eval_dataset", "ARC_c", "--infer_backend", "vllm"], "--eval_url http://HOST:PORT/v1"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(evaluate, words, told, monkeypatch):
    if "general_qa" in words:
        monkeypatch.setenv("SWIFT_OFFLINE", "1")
        code, out, err = evaluate(*words, data=False)
    else:
        code, out, err = evaluate(*words)
    assert code in (2, 5) and told in err and "loading" not in err


def test_missing_data_says_where_it_was_looked_for(evaluate, place, monkeypatch):
    monkeypatch.setenv("SWIFT_OFFLINE", "1")
    code, _, err = evaluate("--eval_dataset", "piqa")
    assert code == 4 and str(place / "data") in err and "cache" in err and "--local_dataset" in err


def test_a_dry_run_writes_nothing(evaluate, tmp_path):
    code, out, err = evaluate("--eval_dataset", "ARC_c", "--eval_limit", str(ROWS), "--dry_run", "true")
    assert code == 0, err
    assert code == 0 and "eval_dataset = ARC_c" in out and not (tmp_path / "eval_output").exists()
