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


ANALYSIS = f"<|channel|>analysis<|message|>We could say {DRAFT}, but no.<|end|>"
PREAMBLE = f"<|channel|>commentary<|message|>I will store one entry, not {DRAFT}.<|end|>"
CALL = f"<|channel|>commentary to=functions.answer <|constrain|>json<|message|>{WRITTEN}<|call|>"


@pytest.mark.parametrize(
    "text",
    [
        f"<|channel|>final<|message|>{WRITTEN}",
        f"<|start|>assistant<|channel|>final<|message|>{WRITTEN}<|end|>",
        f"<|channel|>final <|constrain|>json<|message|>{WRITTEN}<|return|>",
        f"{ANALYSIS}<|start|>assistant<|channel|>final<|message|>{WRITTEN}<|return|>",
        f"{ANALYSIS}{ANALYSIS}<|start|>assistant<|channel|>final<|message|>{WRITTEN}<|return|>",
        f"{PREAMBLE}<|start|>assistant<|channel|>final<|message|>{WRITTEN}<|return|>",
        f"{ANALYSIS}<|start|>assistant{PREAMBLE}<|start|>assistant<|channel|>final<|message|>{WRITTEN}",
        CALL,
        CALL.removesuffix("<|call|>"),
        f"{ANALYSIS}<|start|>assistant{CALL}",
        f"{ANALYSIS}<|start|>assistant{PREAMBLE}<|start|>assistant{CALL}",
        f"{ANALYSIS}<|start|>assistant to=functions.answer<|channel|>commentary <|constrain|>json<|message|>{WRITTEN}",
        f"<|start|>assistant to=functions.answer<|channel|>commentary json<|message|>{WRITTEN}<|call|>",
        f"<|channel|>commentary to=functions.answer<|message|>{WRITTEN}<|call|>",
        f"<|channel|>analysis to=functions.answer code<|message|>{WRITTEN}<|call|>",
        f"<|channel|>commentary to=answer json<|message|>{WRITTEN}<|call|>",
        # the turn is over: what comes behind is another one
        f"{CALL}<|start|>functions.answer to=assistant<|channel|>commentary<|message|>{DRAFT}<|end|>",
        f"<|channel|>final<|message|>{WRITTEN}<|return|><|start|>assistant<|channel|>final<|message|>{DRAFT}",
        f"{CALL.replace('call', 'end')}<|start|>functions.answer to=assistant<|channel|>commentary<|message|>{DRAFT}",
        # a call and then an answer
        f"<|channel|>commentary to=functions.x json<|message|>{DRAFT}<|end|><|channel|>final<|message|>{WRITTEN}",
        # without special tokens
        f"final{WRITTEN}",
        f"analysisWe need {DRAFT}assistantfinal{WRITTEN}",
        f"analysis我们需要{DRAFT}。assistantfinal{WRITTEN}",
        f"analysis{DRAFT} or not.assistantanalysisMore.assistantfinal json{WRITTEN}",
        f"commentaryI will not say {DRAFT}.assistantfinal{WRITTEN}",
        f"commentary to=functions.answer json{WRITTEN}",
        f"to=functions.answercommentary json{WRITTEN}",
        f"analysisWe need {DRAFT}.assistantcommentary to=functions.answer json{WRITTEN}",
        f"analysisWe need {DRAFT}.assistant to=functions.answercommentary json{WRITTEN}",
        f"analysisNot {DRAFT}.assistantcommentaryNow I store.assistantcommentary to=functions.answerjson{WRITTEN}",
        # the turn written again
        f"<|im_start|>assistant\n{WRITTEN}<|im_end|>",
        f"<|start_header_id|>assistant<|end_header_id|>\n\nHere: {WRITTEN}<|eot_id|>",
    ],
)
def test_the_answer_of_every_harmony_shape_is_found(text):
    assert read_model_json(text) == ANSWER


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (ANALYSIS, "no final message"),
        (PREAMBLE, "no final message"),
        (f"{ANALYSIS}<|start|>assistant{PREAMBLE}", "no final message"),
        (f"<|channel|>commentary<|message|>{WRITTEN}<|end|>", "no final message"),
        (f"<|channel|>analysis to=python code<|message|>{WRITTEN}<|call|>", "no final message"),
        (f"<|channel|>analysis{WRITTEN}", "no final message"),
        (f"commentaryI store {WRITTEN}", "no final message"),
        (f"analysis{WRITTEN}", "no final message"),
        (f"<|channel|>final<|message|>{WRITTEN}<|end|><|channel|>final<|message|>{DRAFT}", "2 different"),
        (f"{CALL.replace('<|call|>', '<|end|>')}<|channel|>commentary to=functions.b<|message|>{DRAFT}", "2 different"),
        (f"analysisA.assistantfinal{WRITTEN}assistantfinal{DRAFT}", "2 different"),
        (f"<|channel|>final<|message|>I have nothing.<|end|>{WRITTEN}", "no JSON object"),
    ],
)
def test_harmony_without_one_answer_is_refused(text, problem):
    with pytest.raises(ValueError, match=problem):
        read_model_json(text)


def test_harmony_around_answers_in_words():
    final = "<|start|>assistant<|channel|>final<|message|>Oslo.<|return|>"
    for text in (ANALYSIS + final, PREAMBLE + final, final, "analysisHm.assistantfinalOslo.", "finalOslo."):
        assert read_model_text(text) == "Oslo."
    assert read_model_text(f"{final.replace('return', 'end')}{final}") == "Oslo."
    assert read_model_text("<|im_start|>assistant\nOslo.<|im_end|>") == "Oslo."
    for text in ("analysis of the finals", "final", "finally Oslo", "commentary to the game", "to=Oslo"):
        assert read_model_text(text) == text
    for text in (ANALYSIS, PREAMBLE, CALL, "analysisHm.", f"{final.replace('return', 'end')}{final.replace('O', 'I')}"):
        with pytest.raises(ValueError, match="no final message|2 different"):
            read_model_text(text)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    [
        "<think>",
        "</think>",
        '{"',
        '{"a":1}',
        '{"a":1}</think>',
        "[{",
        "{}",
        ",]",
        "<|end|>",
        " ",
        "a",
        "to=",
        "<|channel|>",
        "<|channel|>a",
        "<|channel|>final",
        "<|channel|>final<|message|>",
        "<|start|>assistant to=a",
        "assistant",
        "assistantfinal",
        "assistant to=",
        "<|im_start|>assistant",
    ],  # fmt: skip
)
def test_long_texts_cost_little(piece):
    """Ten times the text costs about ten times the time and not a hundred times."""

    def seconds(times: int) -> float:
        began = time.thread_time()
        try:
            read_model_json("x" + piece * times)
        except ValueError:
            pass
        return time.thread_time() - began

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
