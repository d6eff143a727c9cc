"""The fake engine keeps the protocol that the others keep."""

import pytest

from swift.engines.fake import FakeEngine
from swift.engines.protocol import GenerationRequest, RequestError, Sampling, generate, generate_all, stream


def ask(text, **sampling):
    return GenerationRequest(messages=[{"role": "user", "content": text}], sampling=Sampling(**sampling))


def test_it_says_the_same_again_character_by_character():
    deltas = list(stream(FakeEngine(), ask("你好!")))
    assert [d.text for d in deltas] == ["你", "好", "!"]
    assert [d.finish_reason for d in deltas] == [None, None, "stop"]
    assert deltas[-1].usage.completion_tokens == 3


@pytest.mark.parametrize(
    ("sampling", "text", "reason"),
    [
        ({"max_new_tokens": 2}, "ab", "length"),
        ({"stop": ("cd",)}, "ab", "stop"),
        ({"max_new_tokens": 6}, "abcdef", "stop"),
    ],
)
def test_limits_and_stop_texts(sampling, text, reason):
    result = generate(FakeEngine(), ask("abcdef", **sampling))
    assert (result.text, result.finish_reason) == (text, reason)


def test_failures_cancelling_and_counts():
    engine = FakeEngine()
    results = list(generate_all(engine, [ask("a"), ask("FAIL"), ask("b")]))
    assert [r.text for r in results] == ["a", "", "b"]
    assert isinstance(results[1].error, RequestError)
    waiting = engine.submit(ask("WAIT"))
    assert engine.stats().running == 1
    waiting.cancel()
    assert [d.finish_reason for d in waiting] == ["cancelled"]
    stats = engine.stats()
    assert (stats.finished, stats.failed, stats.cancelled, stats.running) == (2, 1, 1, 0)
