"""Scoring of generated answers: against closed forms, published examples and other implementations."""

import math

import pytest

from swift.evaluate.compare import mcnemar, sign_flips
from swift.evaluate.ifeval import follows, follows_loosely, sentences
from swift.evaluate.judges import bleu_4, chosen_letter, code_of, rouge_l, rouge_n, words


@pytest.mark.parametrize(
    "text, letter",
    [
        ("B", "B"), ("B.", "B"), ("(C) because", "C"), ("**D**", "D"), ("The answer is A.", "A"),
        ("Answer: (B)", "B"), ("I think A is wrong, so the answer is C", "C"), ("答案是B", "B"), ("\\boxed{D}", "D"),
        ("A man walked in", "A"), ("Because of that", None), ("E", None), ("", None), ("I'm not sure", None),
        ("First, B) is the one", "B"),
    ],
)  # fmt: skip
def test_the_letter_that_an_answer_chooses(text, letter):
    assert chosen_letter(text, list("ABCD")) == letter


def test_rouge_against_the_reference_implementation():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"])
    pairs = [("the cat sat on the mat", "a cat was on the mat today"), ("one two three", "three two one"), ("a b", "c")]
    for reference, hypothesis in pairs:
        expected = scorer.score(reference, hypothesis)
        one, other = words(reference), words(hypothesis)
        assert rouge_n(one, other, 1) == pytest.approx(expected["rouge1"].fmeasure)
        assert rouge_n(one, other, 2) == pytest.approx(expected["rouge2"].fmeasure)
        assert rouge_l(one, other) == pytest.approx(expected["rougeL"].fmeasure)


def test_bleu_of_equal_partial_and_foreign_texts():
    text = words("the quick brown fox jumps over the lazy dog")
    assert bleu_4(text, text) == pytest.approx(1.0)
    assert bleu_4(words("Paris"), words("Paris")) == pytest.approx(1.0)  # shorter than four words
    assert bleu_4(text, words("entirely different")) == 0
    half = bleu_4(text, text[:5])  # all n-grams match, the brevity penalty remains
    assert half == pytest.approx(math.exp(1 - 9 / 5))


def test_chinese_is_counted_by_character():
    assert words("你好，world 2") == ["你", "好", "world", "2"]


@pytest.mark.parametrize(
    "name, arguments, good, bad",
    [
        ("keywords:existence", {"keywords": ["sun", "moon"]}, "Sun and moon", "sun"),
        ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "at least"}, "a b a", "a b"),
        ("keywords:forbidden_words", {"forbidden_words": ["no"]}, "not", "no!"),
        ("keywords:letter_frequency", {"letter": "z", "let_frequency": 2, "let_relation": "at least"}, "Zz", "z"),
        ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "One.", "One. Two."),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a"),
        ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "a b c", "a b"),
        ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
         "a\n\nSo, b", "a\n\nb"),
        ("detectable_content:number_placeholders", {"num_placeholders": 1}, "[x]", "x"),
        ("detectable_content:postscript", {"postscript_marker": "P.S."}, "a\nP.S. b", "a"),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a"),
        ("detectable_format:constrained_response", {}, "My answer is yes.", "yes"),
        ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* *b*", "*a*"),
        ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2},
         "Section 1 a Section 2 b", "Section 1"),
        ("detectable_format:json_format", {}, "```json\n{\"a\": 1}\n```", "{a}"),
        ("detectable_format:title", {}, "<<T>> a", "<<>>"),
        ("combination:two_responses", {}, "a ****** b", "a ****** a"),
        ("combination:repeat_prompt", {"prompt_to_repeat": "Do it."}, "Do it. Done", "Done"),
        ("startend:end_checker", {"end_phrase": "Bye."}, "a Bye.", "Bye. a"),
        ("startend:quotation", {}, '"a"', 'a"'),
        ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"},
         "OH NO", "OH no"),
        ("punctuation:no_comma", {}, "a b", "a, b"),
    ],
)  # fmt: skip
def test_instructions_that_are_followed_and_not(name, arguments, good, bad):
    assert follows(name, arguments, good, "") and not follows(name, arguments, bad, "")
    assert not follows(name, arguments, "  ", "")


def test_loosely_first_and_last_lines_may_be_talk():
    assert follows_loosely("startend:quotation", {}, 'Sure:\n"quoted"\nHope it helps', "")
    assert not follows("startend:quotation", {}, 'Sure:\n"quoted"\nHope it helps', "")


def test_sentences():
    assert [sentences(t) for t in ("Dr. No came. He left!", "One", "Is it 3.5? Yes.", "")] == [2, 1, 2, 0]


def test_code_of_continuations_and_of_chat_answers():
    prompt = "import math\n\ndef f(x):\n    '''doc'''\n"
    for output in ("    return x + 1\n", "```python\ndef f(x):\n    return x + 1\n```", "def f(x):\n    return x + 1"):
        space: dict = {}
        exec(code_of(prompt, output, "f"), space)
        assert space["f"](1) == 2


def test_mcnemar_is_the_binomial_test():
    assert mcnemar(0, 0) == 1.0 and mcnemar(3, 3) == 1.0
    assert mcnemar(0, 5) == pytest.approx(2 * 0.5**5)
    assert mcnemar(2, 8) == pytest.approx(2 * sum(math.comb(10, k) for k in range(3)) / 2**10)
    assert mcnemar(2, 8) == mcnemar(8, 2)


def test_sign_flips_find_a_shift_and_not_noise():
    left = [i / 20 for i in range(20)]
    assert sign_flips(left, [x + 0.1 for x in left]) < 0.001
    assert sign_flips(left, [x + (0.1 if i % 2 else -0.1) for i, x in enumerate(left)]) > 0.5
    assert sign_flips(left, left) == 1.0
