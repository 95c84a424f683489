"""What real models write around and inside the JSON they were asked for."""

import json
import time

import pytest

from membuilder.llm.answer_and_judge import read_verdict
from membuilder.llm.json_output import load_json
from membuilder.llm.model_output import read_model_json, read_model_text

ANSWER = {"operations": [{"action": "ADD", "memory": 'Ann: "My cat" Miso sleeps </think> all day, [1] says {Ben}.'}]}
WRITTEN = json.dumps(ANSWER, ensure_ascii=False)
DRAFT = '{"operations": []}'


@pytest.mark.parametrize(
    "text",
    [
        WRITTEN,
        json.dumps(ANSWER, indent=2),
        "\ufeff" + WRITTEN,
        f"<think>{DRAFT} is too little.</think>{WRITTEN}",
        f"I could say {DRAFT}, but no.\n</think>\n\n{WRITTEN}",
        f"<think>a</think> Or: <think>b {DRAFT}</think>\n{WRITTEN}",
        f"<thinking>\n{DRAFT}\n</thinking>{WRITTEN}",
        f"<Thought>one</Thought>{WRITTEN}",
        f"[THINK]{DRAFT} [/THINK]{WRITTEN}",
        f"◁think▷{DRAFT}◁/think▷{WRITTEN}",
        f'<think>a draft without its end: {{"operations": [{{"action": "ADD", </think>{WRITTEN}',
        f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{WRITTEN}<|return|>",
        f"<|channel|>analysis<|message|>x<|end|><|channel|>final <|constrain|>json<|message|>{WRITTEN}",
        f"analysisWe need {DRAFT}.assistantfinal{WRITTEN}",
        f"{WRITTEN}<|im_end|>",
        f'{WRITTEN}</s>\n<|im_start|>user\n{{"operations": [1]}}',
        f"```json\n{WRITTEN}\n```",
        f"```JSON5 \n{WRITTEN}```",
        f"~~~\n{WRITTEN}\n~~~",
        f"Here is the JSON:\n\n{WRITTEN}\n\nI left {{out}} the greeting [1], see [2022-05-27].",
        f"{WRITTEN}\n\n{json.dumps(ANSWER, indent=1)}",
        f'<tool_call>\n{{"name": "answer", "arguments": {WRITTEN}}}\n</tool_call>',
        json.dumps({"name": "answer", "arguments": WRITTEN}),
        json.dumps({"name": "answer", "parameters": ANSWER}),
        json.dumps({"tool_calls": [{"type": "function", "id": "1", "function": {"name": "a", "arguments": WRITTEN}}]}),
        f"[TOOL_CALLS]answer[ARGS]{WRITTEN}",
        f"<function=answer>{WRITTEN}</function>",
        WRITTEN.replace("}]}", "},],}"),
        f"Sure:\n{WRITTEN.replace('}]}', '},' + chr(10) + '],' + chr(10) + '}')}\nDone, [ok, ]",
    ],
)
def test_the_one_value_is_found(text):
    assert read_model_json(text) == ANSWER


def test_line_breaks_and_commas_inside_strings_stay():
    text = '{"memory": "one,\n]two,\t}\\" ,]", "quote": [1, 2, ],}'
    assert read_model_json(text) == {"memory": 'one,\n]two,\t}" ,]', "quote": [1, 2]}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"{DRAFT}\n{WRITTEN}", "2 different JSON values"),
        (f"Say {DRAFT} or {WRITTEN}", "2 different JSON values"),
        (WRITTEN[:-1], "delimiter"),
        ('{"operations": [{"action": "ADD", "memory": "a"}, {"action": "ADD", "mem', "Unterminated"),
        (f"<think>{WRITTEN} is what I would say, but", "reasoning has no end"),
        (f"Well. <think>{WRITTEN}", "reasoning has no end"),
        (f"<|channel|>analysis<|message|>{WRITTEN}", "no final message"),
        (f"analysisWe need {WRITTEN}", "no final message"),
        ("{'operations': []}", "no JSON object"),
        ("I have nothing to add.", "no JSON object"),
        ("", "no JSON object"),
        ('{"a": 1, "a": 2}', "same key twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a":' * 100_000, "nested too deeply"),
        (json.dumps({"name": "answer", "arguments": "[" * 100_000}), "no JSON object|nested too deeply"),
        (json.dumps({"name": "answer", "arguments": '{"a":' * 100_000}), "nested too deeply"),
        ("```json\n" + '{"a":[' * 100_000, "nested too deeply"),
    ],
)
def test_what_is_ambiguous_is_refused(text, problem):
    with pytest.raises(ValueError, match=problem):
        read_model_json(text)


def test_answers_in_words_lose_reasoning_and_end_tokens():
    assert read_model_text("\ufeffHm, </think> no. </thinking>\n Oslo.<|im_end|>\n<|im_start|>user") == "Oslo."
    assert read_model_text("  In <b>Oslo</b> {probably} [1]  ") == "In <b>Oslo</b> {probably} [1]"
    assert read_model_text("<|channel|>final<|message|>Oslo<|return|>") == "Oslo"
    assert read_model_text("She wrote <think> on the wall.") == "She wrote <think> on the wall."
    with pytest.raises(ValueError, match="no end"):
        read_model_text("<think>Is it Oslo")


def test_rewards_stay_strict():
    """A policy is paid for JSON alone; what the reader for real models forgives is no answer to a reward."""
    for text in (f"Here: {WRITTEN}", WRITTEN.replace("}]}", "},]}"), f"x</think>{WRITTEN}", f"{WRITTEN}<|im_end|>"):
        assert read_model_json(text) == ANSWER
        with pytest.raises(ValueError):
            load_json(text)


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", '{"', '{"a":1}', '{"a":1}</think>', "[{", "{}", ",]", "<|end|>"]
)
def test_long_texts_cost_little(piece):
    """Ten times the text costs about ten times the time and not a hundred times."""

    def seconds(times: int) -> float:
        began = time.perf_counter()
        try:
            read_model_json("x" + piece * times)
        except ValueError:
            pass
        return time.perf_counter() - began

    seconds(1000)
    short = min(seconds(3_000) for _ in range(3))
    assert min(seconds(30_000) for _ in range(2)) < 35 * max(short, 1e-3)


def test_pythons_words_are_read_as_jsons():
    assert read_model_json('{"a": True, "b": FALSE, "c": None, "d": "True, None"}') == {
        "a": True, "b": False, "c": None, "d": "True, None",
    }  # fmt: skip
    with pytest.raises(ValueError):
        read_model_json('{"a": Truest}')


@pytest.mark.parametrize(
    ("reply", "correct"),
    [
        ('{"correct": true, "reason": "same"}', True),
        ('{"correct": "yes"}', True),
        ('{"correct": "TRUE", "confidence": 0.9}', True),
        ('{"reason": "no", "correct": FALSE}', False),
        ('The verdict:\n```json\n{"correct": "No"}\n```', False),
        ('{"correct": "maybe"}', None),
        ('{"correct": null}', None),
        ('{"verdict": true}', None),
        ('{"correct": true} or rather {"correct": false}', None),
        ("[true]", None),
    ],
)
def test_a_verdict_is_read_in_the_judges_own_words(reply, correct):
    if correct is None:
        with pytest.raises(ValueError):
            read_verdict(reply)
    else:
        assert read_verdict(reply).correct is correct
