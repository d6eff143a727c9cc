"""What lm-eval is told and what becomes of answers, with an answerer that needs no model."""

import json

import pytest

pytest.importorskip("lm_eval")

from swift.evaluate.benchmarks import find_benchmark
from swift.evaluate.data import Wish, load_documents
from swift.evaluate.harness import measure
from swift.evaluate.plans import GENERATION, LIKELIHOOD, Plan
from swift.evaluate.store import Answers
from tests.evaluate.material import Scripted, arc, write_jsonl


@pytest.fixture
def ask(tmp_path):
    write_jsonl(tmp_path / "arc_challenge.jsonl", arc(6))
    benchmark = find_benchmark("arc_c")
    documents = load_documents(benchmark, Wish(local_dataset=str(tmp_path), limit=6))

    def run(answerer, plan=None):
        with Answers(tmp_path / "answers.jsonl") as answers:
            plan = plan or Plan(LIKELIHOOD, False, 0, {})
            return measure(benchmark, documents, answerer, plan, answers, "ARC_c")

    return run


def test_an_engine_that_dies_loses_nothing(ask):
    dying = Scripted(lives=10)
    with pytest.raises(RuntimeError):
        ask(dying)
    living = Scripted()
    measured = ask(living)
    assert len(dying.asked) == 10 and len(living.asked) == 24 - 10
    assert not set(dying.asked) & set(living.asked)
    fresh = Scripted()
    assert ask(fresh).metrics == measured.metrics and not fresh.asked


def test_a_line_cut_by_a_kill_is_asked_again(ask, tmp_path):
    ask(Scripted())
    path = tmp_path / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:20])
    again = Scripted()
    ask(again)
    assert len(again.asked) == 24 - 5
    final = Scripted()
    ask(final)
    assert not final.asked


def test_without_logprobs_the_question_is_asked_by_letters(ask):
    measured = ask(Scripted("The answer is B."), Plan(GENERATION, True, 0, {}))
    assert measured.metrics["exact_match,none"][0] == pytest.approx(2 / 6) and measured.unparsed == 0
    prompt = json.loads(measured.samples[0]["prompt"])
    assert prompt == [
        {
            "role": "user",
            "content": "What is cat number 0?\nA. a cat 0\nB. a dog 1\nC. a Paris 2\nD. a two 3\n\n"
            "Answer with the letter of the right option only.",
        }
    ]


def test_answers_that_choose_nothing_are_counted(ask):
    measured = ask(Scripted("I would rather not."), Plan(GENERATION, True, 0, {}))
    assert measured.unparsed == 6 and measured.metrics["exact_match,none"][0] == 0


def test_reasoning_before_the_answer_is_left_out(ask):
    reply = "<think>The answer is C.</think>B"
    measured = ask(Scripted(reply), Plan(GENERATION, True, 0, {}, remove_until="</think>"))
    assert measured.samples[0]["decision"] == "B"
