"""Classifiers, embeddings and rankers: trained by `swift sft` and used; against plain transformers, closed forms."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import torch

from tests import tiny
from tests.serve.served import running

COMMON = "--report_to none --use_cpu true --torch_dtype float32 --learning_rate 3e-3 --lora_dropout 0 "
COMMON += "--per_device_train_batch_size 4"
COLOURS = {"red": ["a cat", "one cat"], "blue": ["a dog", "one dog"], "green": ["story", "Paris"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def typed(tmp_path, monkeypatch, type_words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWIFT_LANG", "en")

    def run(line: str) -> tuple[int, str]:
        return type_words(line.split())

    return run


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def coloured(count: int = 12) -> list[dict]:
    names = list(COLOURS)
    return [{"query": f"{COLOURS[names[i % 3]][i % 2]} {i}", "label": names[i % 3]} for i in range(count)]


def served(words: list[str]):
    """`swift deploy` with these options, running."""
    from swift.config.commands import DeployConfig
    from swift.config.parse import parse
    from swift.serve import deploy

    config = parse(DeployConfig, [*words, "--torch_dtype", "float32"]).config
    config, source = deploy.find_source(config)
    config = config.replace({"served_model_name": ("m",)}, "decided")
    return running(deploy.build(config, source))


def newest(run: str) -> Path:
    return max(Path(run).glob("*/checkpoint-*"), key=lambda path: path.stat().st_mtime)


def records(run: str) -> list[dict]:
    return [json.loads(line) for line in (newest(run).parent / "logging.jsonl").read_text().splitlines()]


def results(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_a_classifier_learns_resumes_answers_and_merges(typed, model):
    write(Path("rows.jsonl"), coloured())
    line = f"sft --model {model} --dataset rows.jsonl --task_type seq_cls --output_dir out {COMMON} --max_steps 24"
    code, said = typed(f"{line} --gradient_accumulation_steps 1 --logging_steps 1 --save_steps 12")
    assert code == 0, said
    log = [record for record in records("out") if "loss" in record]
    assert log[-1]["loss"] < 0.5 * log[0]["loss"] and log[-1]["accuracy"] > 0.9
    args = json.loads((newest("out") / "args.json").read_text())["options"]
    assert args["num_labels"] == 3 and args["label_names"] == ["blue", "green", "red"]

    code, said = typed(f"infer --adapters {newest('out')} --val_dataset rows.jsonl --result_path answers.jsonl")
    assert code == 0 and "accuracy 1.0000 (12 of 12" in said
    answers = results("answers.jsonl")
    assert [answer["response"] for answer in answers] == [row["label"] for row in coloured()]

    code, said = typed(f"export --adapters {newest('out')} --merge_lora true --output_dir merged")
    assert code == 0, said
    line = "infer --model merged --val_dataset rows.jsonl --result_path again.jsonl --load_args false"
    code, said = typed(f"{line} --torch_dtype float32")
    assert code == 0, said
    for one, other in zip(answers, results("again.jsonl"), strict=True):
        assert one["response"] == other["response"]
        torch.testing.assert_close(torch.tensor(one["probabilities"]), torch.tensor(other["probabilities"]))

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    plain, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained("merged"),
        AutoTokenizer.from_pretrained("merged"),
    )
    chat = [{"role": "user", "content": coloured()[0]["query"]}]
    ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        probabilities = plain(**ids).logits.softmax(-1)[0]
    assert plain.config.id2label[int(probabilities.argmax())] == "red"
    torch.testing.assert_close(probabilities, torch.tensor(answers[0]["probabilities"]), atol=1e-4, rtol=1e-4)

    for words in (["--adapters", str(newest("out"))], ["--model", "merged"]):
        with served(words) as url:
            reply = httpx.post(f"{url}/classify", json={"input": coloured()[0]["query"]}).json()["data"][0]
            assert reply["label"] == "red" and reply["probs"] == pytest.approx(answers[0]["probabilities"], abs=1e-4)
            asked = {"messages": [{"role": "user", "content": "hi"}]}
            refused = httpx.post(f"{url}/v1/chat/completions", json=asked)
            assert refused.status_code == 400 and "ask /classify" in refused.json()["error"]["message"]
    code, said = typed(f"infer --adapters {newest('out')} --prompt cat --temperature 0.5")
    assert code == 2 and "says how text is written" in said


def test_full_training_goes_on_from_its_checkpoint_bit_by_bit(typed, model):
    write(Path("rows.jsonl"), [{"query": f"a dog {i}", "label": [i % 3, 2]} for i in range(10)])
    line = f"sft --model {model} --dataset rows.jsonl --task_type seq_cls --tuner_type full --output_dir out {COMMON}"
    line += " --save_steps 2 --max_steps 4 --logging_steps 1 --add_version false"
    assert typed(line)[0] == 0
    whole = (Path("out/checkpoint-4") / "model.safetensors").read_bytes()
    config = json.loads(Path("out/checkpoint-4/config.json").read_text())
    assert config["problem_type"] == "multi_label_classification" and len(config["id2label"]) == 3
    import shutil

    shutil.rmtree("out/checkpoint-4")
    code, said = typed(f"{line} --resume_from_checkpoint out/checkpoint-2")
    assert code == 0, said
    assert (Path("out/checkpoint-4") / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_the_loss_is_that_of_transformers(problem):
    from transformers import AutoModelForSequenceClassification

    from swift.data.heads import HeadCollator, Texts
    from swift.train.heads import classified

    torch.manual_seed(0)
    config = tiny.config(num_labels=3, problem_type=problem)
    plain = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    labels = {
        "single_label_classification": [2, 0, 1],
        "multi_label_classification": [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]],
        "regression": [[0.5, 1.0, -1.0], [0.0, 0.1, 2.0], [1.5, 1.0, 1.0]],
    }[problem]
    rows = [
        {"texts": [torch.randint(5, 500, (4 + 3 * i,)).numpy()], "roles": [0], "label": label, "row_id": i}
        for i, label in enumerate(labels)
    ]
    batch = HeadCollator(0)(rows)
    parts = classified(plain, batch, problem=problem)
    reference = plain(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["targets"]).loss
    torch.testing.assert_close(parts.total / parts.tokens, reference)
    assert Texts([[1]], [0]).label is None


def test_infonce_is_the_cross_entropy_written_out(monkeypatch):
    from swift.train import heads

    vectors = torch.nn.functional.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    monkeypatch.setattr(heads, "embeddings", lambda model, inputs: vectors)
    # row 0: query, two positives, one negative; row 1: query, positive, negative
    inputs = {"roles": torch.tensor([0, 1, 1, 2, 0, 1, 2]), "row_of": torch.tensor([0, 0, 0, 0, 1, 1, 1])}
    parts = heads.infonce(None, inputs, temperature=0.1)
    expected = 0.0
    for query, positive, rivals in ((0, 1, [1, 3, 5, 6]), (0, 2, [2, 3, 5, 6]), (4, 5, [1, 2, 3, 5, 6])):
        values = (vectors[rivals] @ vectors[query]) / 0.1
        expected += torch.logsumexp(values, 0) - values[rivals.index(positive)]
    torch.testing.assert_close(parts.total, expected)
    assert int(parts.tokens) == 3


def test_embeddings_of_pairs_come_together_and_don_t_depend_on_padding(typed, model):
    words = ["cat", "dog", "story", "Paris", "France", "assistant", "weather", "name"]
    rows = [{"anchor": f"What is {word}?", "positive": f"{word} is one"} for word in words]
    write(Path("rows.jsonl"), rows)
    line = f"sft --model {model} --dataset rows.jsonl --task_type embedding --output_dir out {COMMON} --max_steps 30"
    code, said = typed(f"{line} --gradient_accumulation_steps 1 --logging_steps 1")
    assert code == 0, said
    log = [record for record in records("out") if "loss" in record]
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    texts = [row["anchor"] for row in rows] + [row["positive"] for row in rows]
    write(Path("texts.jsonl"), [{"query": text} for text in texts])
    assert typed(f"infer --adapters {newest('out')} --val_dataset texts.jsonl --result_path vectors.jsonl")[0] == 0
    vectors = torch.tensor([result["embedding"] for result in results("vectors.jsonl")])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(texts)))
    assert ((vectors[:8] @ vectors[8:].T).argmax(dim=1) == torch.arange(8)).float().mean() >= 0.75

    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), newest("out"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": texts[3]}], return_tensors="pt", return_dict=True)
    with torch.no_grad():
        hidden = plain.get_base_model().model(**ids).last_hidden_state[0, -1]
    torch.testing.assert_close(vectors[3], hidden / hidden.norm(), atol=1e-5, rtol=1e-4)

    with served(["--adapters", str(newest("out"))]) as url:
        reply = httpx.post(f"{url}/v1/embeddings", json={"input": texts}).json()
        found = torch.tensor([entry["embedding"] for entry in reply["data"]])
        torch.testing.assert_close(found, vectors, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("loss", ["pointwise_reranker", "listwise_reranker"])
def test_a_ranker_learns_to_put_the_positive_first(typed, model, loss):
    words = ["cat", "dog", "story", "Paris"]
    rows = [
        {"query": f"What is {w}?", "pos": [f"{w} is one"], "neg": [f"the {x} two" for x in words if x != w][:2]}
        for w in words
    ]
    write(Path("rows.jsonl"), rows)
    line = f"sft --model {model} --dataset rows.jsonl --task_type reranker --loss_type {loss} --output_dir out {COMMON}"
    code, said = typed(f"{line} --max_steps 25 --gradient_accumulation_steps 1 --logging_steps 5")
    assert code == 0, said
    code, said = typed(f"infer --adapters {newest('out')} --val_dataset rows.jsonl --result_path ranks.jsonl")
    assert code == 0 and "mean reciprocal rank 1.0000 over 4 rows" in said
    scores = [result["scores"] for result in results("ranks.jsonl")]
    assert all(len(found) == 3 for found in scores)
    with served(["--adapters", str(newest("out"))]) as url:
        for row, expected in zip(rows, scores, strict=True):
            body = {"query": row["query"], "documents": [*row["pos"], *row["neg"]]}
            ranked = httpx.post(f"{url}/v1/rerank", json=body).json()["results"]
            assert ranked[0]["index"] == 0
            assert {r["index"]: r["relevance_score"] for r in ranked} == pytest.approx(
                dict(enumerate(expected)), abs=1e-4
            )


@pytest.mark.parametrize(
    "rows, options, words",
    [
        ([{"query": "a", "label": 0}, {"query": "b"}], "--task_type seq_cls --strict true", "no label"),
        ([{"query": "a", "response": "b"}], "--task_type seq_cls", "no row has a label"),
        ([{"query": "a", "label": 4}], "--task_type seq_cls --num_labels 3", "--num_labels 5"),
        ([{"query": "a", "label": 1}], "--task_type seq_cls --loss_scale all", "means nothing with"),
        ([{"query": "a", "label": 1}], "--num_labels 3", "means nothing with --task_type causal_lm"),
        ([{"query": "a", "response": "b"}], "--task_type embedding", "nothing that belongs with the query"),
        ([{"anchor": "a", "positive": "b"}], "--task_type embedding", "a batch of 1 without negatives"),
        ([{"query": "a", "pos": "b"}], "--task_type reranker --loss_type infonce", "is no loss of"),
    ],
)
def test_what_can_t_be_learned_is_said_before_any_weight_is_read(typed, model, rows, options, words):
    write(Path("rows.jsonl"), rows)
    code, said = typed(
        f"sft --model {model} --dataset rows.jsonl {options} --output_dir out --per_device_train_batch_size 1"
    )
    assert code != 0 and words in said and not Path("out").exists()


def test_an_architecture_without_a_classifier_is_refused(typed, tmp_path):
    path = tiny.checkpoint(tmp_path / "mamba", "mamba", state_size=4, num_hidden_layers=1)
    write(Path("rows.jsonl"), coloured())
    code, said = typed(f"sft --model {path} --dataset rows.jsonl --task_type seq_cls --output_dir out {COMMON}")
    assert code != 0 and "transformers has no classifier of architecture mamba" in said and not Path("out").exists()
