"""A conversation over a pipe with the fake engine: what is asked, what is remembered, what the words do."""

import io

import pytest

from swift.engines.fake import FakeEngine
from swift.engines.interactive import RULE, Session, print_answer
from swift.engines.protocol import Delta, GenerationRequest, Sampling
from swift.engines.replies import Replies
from swift.engines.setup import PlainEncoder
from swift.engines.stream import GenerationStream

REPLIES = Replies(PlainEncoder(None))


@pytest.fixture
def talk(monkeypatch, capsys):
    """Say these lines; returns (answers, the messages of every request, the session)."""

    def run(*lines, engine=None, end="\n"):
        seen = []

        def answer(messages):
            seen.append(messages)
            return f"re: {messages[-1]['content']}"

        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + end))
        session = Session(engine or FakeEngine(answer), Sampling(seed=1), REPLIES, stream=True)
        session.run()
        blocks = capsys.readouterr().out.split(f"\n{RULE}\n")[:-1]
        return [block.partition("re: ")[2] for block in blocks], seen, session

    return run


def contents(messages):
    return [message["content"] for message in messages]


def test_each_line_is_a_question_and_the_conversation_is_remembered(talk):
    answers, seen, _ = talk("one", "", "two")
    assert answers == ["one", "two"]
    assert contents(seen[1]) == ["one", "re: one", "two"]


def test_exit_leaves_and_clear_forgets(talk):
    _, seen, _ = talk("one", "Clear", "two", "exit", "three")
    assert [contents(messages) for messages in seen] == [["one"], ["two"]]
    assert talk("quit", "x")[1] == []


def test_texts_of_several_lines(talk):
    answers, seen, _ = talk("multi-line", "a", "b#", "single-line", "c", end="")
    assert answers == ["a\nb", "c"]
    assert talk("multi-line", "a", "no end")[0] == ["a\nno end"]


def test_a_new_system_prompt_starts_over(talk):
    _, seen, _ = talk("one", "reset-system", "be brief", "two", "three", "reset-system", "", "four")
    assert [(m["role"], m["content"]) for m in seen[1]] == [("system", "be brief"), ("user", "two")]
    assert contents(seen[2]) == ["be brief", "two", "re: two", "three"]
    assert contents(seen[3]) == ["four"]


def test_a_failed_answer_does_not_end_the_session_nor_stay_in_it(talk):
    answers, seen, session = talk("one", "FAIL now", "two")
    assert answers == ["one", "two"]
    assert contents(seen[-1]) == ["one", "re: one", "two"]
    assert session.failures == 1


def test_ctrl_c_stops_the_answer_and_keeps_what_has_come(capsys):
    """The engine's stream raises KeyboardInterrupt in its reader, as the signal does, and then ends as cancelled."""

    class Interrupted(GenerationStream):
        def __next__(self):
            item = super().__next__()
            if item.text == "!":
                raise KeyboardInterrupt
            return item

    class Engine(FakeEngine):
        def submit(self, request):
            deltas = Interrupted(lambda: (deltas.put(Delta(finish_reason="cancelled")), deltas.end()))
            for text in ("half", "!"):
                deltas.put(Delta(text))
            return deltas

    request = GenerationRequest(messages=[{"role": "user", "content": "x"}])
    result, text = print_answer(Engine(), request, REPLIES, stream=True)
    assert (text, result.finish_reason) == ("half", "cancelled")
    assert capsys.readouterr().out == "half\n"


def test_what_the_prompt_has_written_of_the_answer_is_shown_and_kept(capsys):
    class Thinking(PlainEncoder):
        def prompt_text(self, messages, tools=None):
            return "assistant:<think>\n"

    request = GenerationRequest(messages=[{"role": "user", "content": "hm</think>yes"}])
    for stream in (True, False):
        _, text = print_answer(FakeEngine(), request, Replies(Thinking(None)), stream)
        assert text == "<think>\nhm</think>yes"
        assert capsys.readouterr().out == text + "\n"
    prefixed = Replies(PlainEncoder(None, response_prefix="Sure: "))
    assert print_answer(FakeEngine(), request, prefixed, stream=True)[1].startswith("Sure: hm")
