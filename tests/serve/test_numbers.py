"""Embeddings, ranks and classes by the real clients, against plain transformers."""

from __future__ import annotations

import base64
import json
import threading

import httpx
import numpy as np
import openai
import pytest
import torch

from swift.config.commands import DeployConfig
from swift.config.parse import parse
from swift.engines.pooling import Queue
from swift.engines.protocol import RequestError, Text
from swift.errors import ModelFileError, SwiftError
from swift.models.sentence import pooled, read_layout
from swift.serve import deploy
from tests import tiny
from tests.serve.served import running

TEXTS = ["a cat", "The capital of France is Paris.", "one plus one is two and a dog", "x"]


def served(directory, *argv):
    """`swift deploy` with these options, up to its service."""
    config = parse(DeployConfig, ["--model", str(directory), "--torch_dtype", "float32", *argv]).config
    config, source = deploy.find_source(config)
    config = config.replace({"served_model_name": ("tiny",)}, "decided")
    return deploy.build(config, source)


@pytest.fixture(scope="module")
def chat_dir(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("numbers") / "chat", "llama")


def encoder_config(**changes):
    from transformers import BertConfig

    return BertConfig(
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
        **changes,
    )


def saved(path, model):
    torch.manual_seed(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.eval().save_pretrained(path)
    tokenizer = tiny.tokenizer(None)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def sentence_dir(tmp_path_factory):
    """A BERT with cls and mean pooling, a dense layer and normalization, as sentence-transformers saves them."""
    from safetensors.torch import save_file
    from transformers import BertForMaskedLM

    path = saved(tmp_path_factory.mktemp("numbers") / "sentence", BertForMaskedLM(encoder_config()))
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for i, (folder, kind) in enumerate(kinds.items())
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 12, "do_lower_case": true}')
    for folder in ("1_Pooling", "2_Dense"):
        (path / folder).mkdir()
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    dense = {"in_features": 64, "out_features": 16, "bias": True}
    dense["activation_function"] = "torch.nn.modules.activation.Tanh"
    (path / "2_Dense" / "config.json").write_text(json.dumps(dense))
    torch.manual_seed(5)
    weights = {"linear.weight": torch.randn(16, 64), "linear.bias": torch.randn(16)}
    save_file(weights, path / "2_Dense" / "model.safetensors")
    return path


def sentence_reference(path, texts):
    """As sentence-transformers computes it, in plain transformers, one text at a time."""
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    dense = load_file(path / "2_Dense" / "model.safetensors")
    rows = []
    for text in texts:
        ids = tokenizer(text.lower(), return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            hidden = model(**ids).last_hidden_state[0]
        vector = torch.cat([hidden[0], hidden.mean(0)])
        vector = torch.tanh(dense["linear.weight"] @ vector + dense["linear.bias"])
        rows.append(vector / vector.norm())
    return torch.stack(rows)


def client_of(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)


def vectors_of(reply):
    return torch.tensor([entry.embedding for entry in reply.data])


def causal_reference(path, texts):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    rows = []
    for text in texts:
        with torch.no_grad():
            output = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        rows.append(output.hidden_states[-1][0, -1])
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def test_a_chat_model_embeds_by_its_last_token_while_it_chats(chat_dir):
    from transformers import AutoTokenizer

    with running(served(chat_dir)) as url:
        client, expected = client_of(url), causal_reference(chat_dir, TEXTS)
        talking = threading.Thread(
            target=lambda: client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=60
            )
        )
        talking.start()
        reply = client.embeddings.create(model="tiny", input=TEXTS)  # the client asks for base64 by itself
        torch.testing.assert_close(vectors_of(reply), expected, atol=1e-5, rtol=1e-4)
        tokenizer = AutoTokenizer.from_pretrained(chat_dir)
        ids = [tokenizer(text)["input_ids"] for text in TEXTS]
        assert reply.usage.prompt_tokens == reply.usage.total_tokens == sum(map(len, ids))
        assert [entry.index for entry in reply.data] == [0, 1, 2, 3] and reply.model == "tiny"
        for given in (ids, ids[1], TEXTS[1]):
            found = vectors_of(client.embeddings.create(model="tiny", input=given, encoding_format="float"))
            wanted = expected if given is ids else expected[1:2]
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
        raw = httpx.post(f"{url}/v1/embeddings", json={"input": "a cat", "encoding_format": "base64"}).json()
        plain = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4")
        np.testing.assert_allclose(plain, expected[0].numpy(), atol=1e-5)
        short = vectors_of(client.embeddings.create(model="tiny", input="a cat", dimensions=8))
        torch.testing.assert_close(short, torch.nn.functional.normalize(expected[:1, :8], dim=-1), atol=1e-5, rtol=1e-4)
        talking.join()
        refused = httpx.post(f"{url}/v1/rerank", json={"query": "a", "documents": ["b"]})
        assert refused.status_code == 400 and "deploy another model" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input": []}, "input is empty"),
        ({"input": ["a", ""]}, "input[1] is empty"),
        ({"input": [1, "a"]}, "input must be a string"),
        ({"input": [[1], [99999]]}, "out of range"),
        ({"input": ["a"] * 2049}, "at most 2048"),
        ({"input": "a", "dimensions": 65}, "at most 64"),
        ({"input": "a", "encoding_format": "int8"}, "one of float, base64"),
        ({"input": "a dog " * 600}, "truncate_prompt_tokens"),
        ({"input": "a", "model": "other"}, "no model"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(chat_url, body, words):
    reply = httpx.post(f"{chat_url}/v1/embeddings", json=body)
    assert reply.status_code in (400, 404) and words in reply.json()["error"]["message"], reply.text


@pytest.fixture(scope="module")
def chat_url(chat_dir):
    with running(served(chat_dir)) as url:
        yield url


def test_adapters_by_request_change_vectors_too(chat_dir, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(chat_dir), LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    )
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "law")
    config = parse(DeployConfig, ["--model", str(chat_dir), "--adapters", f"law={tmp_path / 'law'}"]).config
    config, source = deploy.find_source(config)
    config = config.replace({"served_model_name": ("tiny",)}, "decided")
    tuned = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(chat_dir), tmp_path / "law"
    ).merge_and_unload()
    tuned.save_pretrained(tmp_path / "merged")
    tiny.tokenizer().save_pretrained(tmp_path / "merged")
    with running(deploy.build(config, source)) as url:
        client = client_of(url)
        base = vectors_of(client.embeddings.create(model="tiny", input=TEXTS))
        law = vectors_of(client.embeddings.create(model="law", input=TEXTS))
    torch.testing.assert_close(base, causal_reference(chat_dir, TEXTS), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(law, causal_reference(tmp_path / "merged", TEXTS), atol=1e-4, rtol=1e-3)
    assert (law - base).abs().max() > 1e-2


def test_sentence_transformers_layout_is_honoured(sentence_dir):
    with running(served(sentence_dir)) as url:
        client, texts = client_of(url), ["A Cat", "Paris", "one dog"]
        expected = sentence_reference(sentence_dir, texts)
        found = vectors_of(client.embeddings.create(model="tiny", input=texts))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        with pytest.raises(openai.BadRequestError, match="the model takes 12"):
            client.embeddings.create(model="tiny", input="a dog and " * 20)
        cut = client.embeddings.create(model="tiny", input="a dog " * 20, extra_body={"truncate_prompt_tokens": -1})
        assert cut.usage.prompt_tokens == 12
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
        with pytest.raises(openai.BadRequestError, match="embeds texts: ask /v1/embeddings"):
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
        assert "embed" in client.models.list().data[0].model_extra["tasks"]
        reply = httpx.post(f"{url}/rerank", json={"query": texts[0], "documents": texts[1:]}).json()
        angles = (expected[1:] @ expected[0]).tolist()
        assert [result["index"] for result in reply["results"]] == sorted((0, 1), key=lambda i: -angles[i])
        assert sorted(r["relevance_score"] for r in reply["results"]) == pytest.approx(sorted(angles), abs=1e-5)


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_pooling_doesnt_see_padding(mode):
    torch.manual_seed(0)
    hidden = torch.randn(1, 5, 7)
    padded = torch.cat([hidden, torch.randn(1, 4, 7)], dim=1)
    mask = torch.tensor([[1] * 5 + [0] * 4])
    row = hidden[0]
    weights = torch.arange(1.0, 6.0)[:, None]
    closed = {
        "cls": row[0],
        "max": row.amax(0),
        "mean": row.sum(0) / 5,
        "mean_sqrt_len_tokens": row.sum(0) / 5**0.5,
        "weightedmean": (row * weights).sum(0) / 15,
        "lasttoken": row[4],
    }[mode]
    torch.testing.assert_close(pooled(padded, mask, (mode,))[0], closed)


def test_a_layout_that_cannot_be_honoured_is_refused(tmp_path):
    def write(modules, pooling):
        (tmp_path / "1_Pooling").mkdir(exist_ok=True)
        kinds = [{"type": f"x.{kind}", "path": folder} for kind, folder in modules]
        (tmp_path / "modules.json").write_text(json.dumps(kinds))
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))

    both = [("Transformer", ""), ("Pooling", "1_Pooling")]
    write(both, {"pooling_mode": "lasttoken"})
    assert read_layout(tmp_path).modes == ("lasttoken",)
    for modules, pooling in (
        ([*both, ("LSTM", "2_LSTM")], {"pooling_mode": "mean"}),
        (both, {"pooling_mode": "median"}),
        (both, {}),
        ([("Transformer", "0_Transformer"), ("Pooling", "1_Pooling")], {"pooling_mode": "mean"}),
    ):
        write(modules, pooling)
        with pytest.raises(ModelFileError):
            read_layout(tmp_path)


def test_a_cross_encoder_ranks(tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

    path = saved(tmp_path / "ranker", BertForSequenceClassification(encoder_config(num_labels=1)))
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    query, documents = "capital of France?", ["Paris", "a dog is a dog", "The capital of France is Paris."]
    with torch.no_grad():
        expected = [float(model(**tokenizer(query, d, return_tensors="pt")).logits.sigmoid()) for d in documents]
    with running(served(path)) as url:
        for version in ("", "/v1", "/v2"):
            body = {"model": "tiny", "query": query, "documents": [documents[0], {"text": documents[1]}, documents[2]]}
            reply = httpx.post(f"{url}{version}/rerank", json=body).json()
            scores = {r["index"]: r["relevance_score"] for r in reply["results"]}
            assert [scores[i] for i in range(3)] == pytest.approx(expected, abs=1e-5)
            ordered = [r["relevance_score"] for r in reply["results"]]
            assert ordered == sorted(ordered, reverse=True)
            assert all(r["document"]["text"] == documents[r["index"]] for r in reply["results"])
        best = httpx.post(f"{url}/rerank", json={**body, "top_n": 1, "return_documents": False}).json()["results"]
        assert [r["index"] for r in best] == [max(range(3), key=expected.__getitem__)] and "document" not in best[0]
        for names in (("text_1", "text_2"), ("queries", "documents")):
            reply = httpx.post(f"{url}/v1/score", json={names[0]: query, names[1]: documents}).json()
            assert [entry["score"] for entry in reply["data"]] == pytest.approx(expected, abs=1e-5)
        uneven = httpx.post(f"{url}/score", json={"text_1": ["a", "b"], "text_2": ["c"]})
        assert uneven.status_code == 400 and "2 first and 1 second" in uneven.json()["error"]["message"]
        refused = httpx.post(f"{url}/v1/embeddings", json={"input": "a"}).json()["error"]["message"]
        assert "classifies texts and ranks documents" in refused
        health = httpx.get(f"{url}/health")
        assert health.status_code == 200


def test_a_classifier_names_classes(tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

    names = {0: "bad", 1: "good", 2: "so so"}
    path = saved(tmp_path / "classes", BertForSequenceClassification(encoder_config(num_labels=3, id2label=names)))
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    with running(served(path)) as url:
        reply = httpx.post(f"{url}/classify", json={"input": TEXTS[:3]}).json()
        for entry, text in zip(reply["data"], TEXTS, strict=False):
            with torch.no_grad():
                expected = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
            assert entry["probs"] == pytest.approx(expected.tolist(), abs=1e-5)
            assert entry["label"] == names[int(expected.argmax())] and entry["num_classes"] == 3
        assert httpx.post(f"{url}/rerank", json={"query": "a", "documents": ["b"]}).status_code == 400


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--infer_backend", "vllm"], "only pt runs"),
        (["--loss_type", "infonce"], "concerns training"),
    ],
)
def test_what_cannot_be_deployed_is_said_first(sentence_dir, argv, words):
    config = parse(DeployConfig, ["--model", str(sentence_dir), "--dry_run", "true", *argv]).config
    with pytest.raises(SwiftError, match=words):
        deploy.main(config)


def test_a_text_that_fails_fails_alone_and_a_cancelled_one_costs_nothing():
    turns, seen = [], []

    def run(texts, adapter):
        seen.append([text.ids for text in texts])
        if any(9 in text.ids for text in texts):
            raise RuntimeError("boom")
        return [[float(sum(text.ids))] for text in texts]

    queue = Queue(turns.append, run)
    futures = queue.add([Text((1, 2)), Text((9,)), Text((3,)), Text((4,))], None)
    futures[3].cancel()
    while turns:
        turns.pop()()
    assert futures[0].result() == [3.0] and futures[2].result() == [3.0]
    assert "boom" in str(futures[1].exception())
    assert not any((4,) in batch for batch in seen)
    with pytest.raises(RequestError, match="no tokens"):
        queue.add([Text(())], None)
