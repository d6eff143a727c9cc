"""lm-evaluation-harness as a client: its `local-completions` scores over our server as its `hf` does on the model."""

from __future__ import annotations

import re

import pytest

from swift.config.commands import DeployConfig
from swift.config.parse import parse
from swift.serve import deploy
from tests import tiny
from tests.serve.served import running

pytest.importorskip("tenacity")  # what local-completions needs beside lm-eval (lm-eval[api])
completions = pytest.importorskip("lm_eval.models.openai_completions")

PAIRS = [
    ("The capital of France is", " Paris."),
    ("The capital of France is", " a dog"),
    ("", "Who are you?"),
    ("你好，你是谁？", "我是一个人工智能助手。"),
    ("What is one plus one?\nAnswer:", " two"),
]


def requests(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, i, metadata=("task", i, 1)) for i, args in enumerate(arguments)]


@pytest.mark.parametrize("tokenized", [True, False])
def test_scores_and_answers_are_those_of_its_own_model(tmp_path, tokenized):
    from lm_eval.models.huggingface import HFLM

    folder = tiny.checkpoint(tmp_path / "tiny")
    given = parse(DeployConfig, ["--model", str(folder), "--torch_dtype", "float32", "--served_model_name", "tiny"])
    own = HFLM(str(folder), device="cpu", dtype="float32", batch_size=2)
    with running(deploy.build(*deploy.find_source(given.config))) as url:
        ours = completions.LocalCompletionsAPI(
            base_url=f"{url}/v1/completions",
            model="tiny",
            tokenizer=str(folder),
            tokenized_requests=tokenized,
            num_concurrent=3,
            max_length=512,
        )
        asked = requests("loglikelihood", PAIRS)
        found, wanted = ours.loglikelihood(asked), own.loglikelihood(asked)
        assert [score for score, _ in found] == pytest.approx([score for score, _ in wanted], abs=1e-3)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
        rolling = requests("loglikelihood_rolling", [(text,) for text in tiny.CORPUS])
        assert ours.loglikelihood_rolling(rolling) == pytest.approx(own.loglikelihood_rolling(rolling), abs=1e-2)
        settings = {"until": [" a"], "max_gen_toks": 8, "do_sample": False}
        written = requests("generate_until", [(pair[0], settings) for pair in PAIRS if pair[0]])
        plain = [re.sub("|".join(map(re.escape, tiny.SPECIAL)), "", text) for text in ours.generate_until(written)]
        assert plain == own.generate_until(written)  # which leaves special tokens out
