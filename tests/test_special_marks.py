"""Tokenizers that have the tags of calls, or of thinking, as special tokens: what is sampled keeps them."""

import random
from dataclasses import replace

import pytest

from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.schemes.memalpha.calls import MARKS
from membuilder.schemes.memalpha.config import CallFormat, MemAlphaConfig
from membuilder.schemes.memalpha.scheme import WRITER, MemAlpha
from membuilder.schemes.scheme import CallOutcome, marks_of
from membuilder.types import AgentUpdate, Bank, Dialogue, Operation, OperationKind
from rollout.chat_template import set_template_kwargs
from rollout.sampler import make_task, sample_groups
from rollout.thinking import CLOSING
from rollout.tokens import decode_completion, encode_completion
from rollout.types import SamplingConfig
from tests.fakes import HashEmbedder
from tests.hermes_runs import qwen3_tokenizer
from tests.memalpha_chunks import LINES, chunk, words
from tests.test_turns import ByTurn
from trainer.batching.packing import sequences_of
from trainer.data.corpus import expert_builds
from trainer.data.sft_examples import sft_trees
from trainer.experience.collector import Collector
from trainer.experience.evaluate import build_with_policy
from trainer.sft_config import SFTConfig

SAMPLING = SamplingConfig(temperature=1.0, top_p=1.0, max_tokens=200)
STORES = AgentUpdate(operations=(Operation(kind=OperationKind.ADD, part="semantic", quote=(2,)),))


@pytest.fixture(scope="module")
def plain():
    return qwen3_tokenizer()


def special(*tags: str):
    tokenizer = qwen3_tokenizer(special_tags=True)
    tokenizer.add_tokens(list(tags), special_tokens=True)
    return tokenizer


def scheme_of(response_format: str, **settings) -> MemAlpha:
    return MemAlpha(MemAlphaConfig(response_format=response_format, **settings), words)


class Speaks(ByTurn):
    """It writes targets as the scheme's own tokens, as a model trained on them would."""

    def __init__(self, tokenizer, scheme, *calls: list[str]) -> None:
        super().__init__(tokenizer, *calls, max_model_len=10_000)
        self.marks = marks_of(scheme)

    def ids_of(self, text: str) -> list[int]:
        return encode_completion(self.tokenizer, text, self.marks)


@pytest.mark.parametrize("response_format", CallFormat)
def test_a_target_is_written_in_the_tokens_that_the_model_has_for_it_and_read_back(response_format):
    scheme, tokenizer = scheme_of(response_format), special(*MARKS[response_format])
    text = scheme.write(WRITER, STORES, chunk(*LINES), {WRITER: ()})
    ids = encode_completion(tokenizer, text, marks_of(scheme))
    spelt = [mark for mark in MARKS[response_format] if mark in text]
    assert spelt and {tokenizer.convert_tokens_to_ids(mark) for mark in spelt} <= set(ids)
    assert decode_completion(tokenizer, ids, marks_of(scheme)) == text
    without = text
    for mark in spelt:
        without = without.replace(mark, "")
    assert decode_completion(tokenizer, ids) == without  # as every special token went
    assert scheme.parse(WRITER, decode_completion(tokenizer, ids, marks_of(scheme)), chunk(*LINES)) == STORES


def test_control_tokens_are_no_part_of_an_answer_and_those_spelt_out_stay_text():
    tokenizer, marks = special(), MARKS[CallFormat.HERMES]
    start, tag, text = (tokenizer.convert_tokens_to_ids(each) for each in ("<|im_start|>", "<tool_call>", "a"))
    assert decode_completion(tokenizer, [start, tag, text, tokenizer.eos_token_id], marks) == "<tool_call>a"
    spelt = "<tool_call>the end is <|im_end|> here</tool_call>"
    ids = encode_completion(tokenizer, spelt, marks)
    assert ids.count(tokenizer.eos_token_id) == 1 and decode_completion(tokenizer, ids, marks) == spelt


def test_without_special_tags_nothing_is_another_token_or_text_than_before(plain):
    """What the two functions came to when they knew no marks."""
    draw = random.Random(1)
    for tokenizer in (plain, special()):
        tags = set() if tokenizer is plain else {tokenizer.convert_tokens_to_ids(t) for t in ("<think>", "</think>")}
        for _ in range(50):
            ids = [draw.randrange(len(tokenizer)) for _ in range(12)]
            ids = [number for number in ids if number not in tags]
            before = tokenizer.decode(ids, skip_special_tokens=True)
            assert decode_completion(tokenizer, ids) == before
        for text in ('{"operations": []}', "<tool_call>x</tool_call> <|im_end|>", "no"):
            before = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            assert encode_completion(tokenizer, text)[:-1] == before
    assert marks_of(FourAgents(PromptConfig())) == ()


def outcomes(rollout) -> list[CallOutcome]:
    return [call.outcome for call in rollout.samples[WRITER].calls]


def test_calls_that_are_sampled_run(plain):
    scheme = scheme_of("hermes", max_turns=2)
    task = make_task("d", chunk(*LINES), Bank(), scheme, HashEmbedder())
    text = scheme.write(WRITER, STORES, task.session, {WRITER: ()})
    for tokenizer in (plain, special()):
        engine = Speaks(tokenizer, scheme, [text], ["Done"])
        (group,) = sample_groups([task], engine, tokenizer, scheme, SAMPLING, 1, seed=1)
        (rollout,) = group.rollouts
        assert outcomes(rollout) == [CallOutcome.RAN] and len(rollout.bank.entries) == 1
        assert rollout.samples[WRITER].text == text


@pytest.mark.parametrize("scheme", [scheme_of("hermes"), FourAgents(PromptConfig())], ids=["memalpha", "four_agents"])
def test_thinking_is_closed_at_its_budget_and_read_past(scheme):
    tokenizer, budget = special(), replace(SAMPLING, thinking_budget=30)
    session = chunk(*LINES)
    role = WRITER if isinstance(scheme, MemAlpha) else scheme.roles[0]
    update = scheme.expert(session, Bank(), dict.fromkeys(scheme.roles, ()))[role]
    said = scheme.write(role, update, session, {role: ()})
    task = make_task("d", session, Bank(), scheme, HashEmbedder())
    engine = Speaks(tokenizer, scheme, ["<think>\nHm..."] * len(scheme.roles), [said] * len(scheme.roles))
    (group,) = sample_groups([task], engine, tokenizer, scheme, budget, 1, seed=1)
    sample = group.rollouts[0].samples[role]
    assert sample.text == f"<think>\nHm{CLOSING}{said}" and sample.failure is None
    thought = tokenizer.convert_tokens_to_ids("</think>")
    assert sample.later[0].told_token_ids.count(thought) == 1


def test_sft_teaches_the_tags_and_an_evaluation_reads_them():
    scheme, tokenizer = scheme_of("hermes"), special()
    set_template_kwargs(tokenizer, {"enable_thinking": False})
    dialogue = Dialogue(id="d", speakers=("Ann",), sessions=(chunk(*LINES),), questions=())
    builds = expert_builds([dialogue], HashEmbedder(), scheme, "rules")
    (tree,), _ = sft_trees(builds, tokenizer, scheme, SFTConfig())
    (sequence,) = sequences_of(tree)
    opened = tokenizer.convert_tokens_to_ids("<tool_call>")
    assert sequence.completion_token_ids.count(opened) == len(builds[0].steps[0].updates[WRITER].operations) > 0
    text = decode_completion(tokenizer, sequence.completion_token_ids[:-1], marks_of(scheme))
    none = dict.fromkeys(("embedder", "judge", "formula", "count_tokens", "reward"))
    engine = Speaks(tokenizer, scheme, [text])
    collector = Collector(
        engine=engine, tokenizer=tokenizer, scheme=scheme, sampling=SAMPLING, num_rollouts=1,
        **none | {"embedder": HashEmbedder()},
    )  # fmt: skip
    (built,) = build_with_policy([dialogue], collector, "build")
    assert (built.num_valid, built.num_outputs) == (1, 1)
    assert [entry.text for entry in built.bank.entries] == [
        entry.text for entry in builds[0].steps[0].result.bank.entries
    ]


@pytest.mark.parametrize("response_format", [CallFormat.HERMES, CallFormat.MARKS])  # those that have results to read
def test_sft_on_the_offline_expert_teaches_the_answer_that_ends_the_turns(response_format):
    scheme, tokenizer = scheme_of(response_format, max_turns=3), special()
    set_template_kwargs(tokenizer, {"enable_thinking": False})
    session = chunk(*LINES)
    dialogue = Dialogue(id="d", speakers=("Ann",), sessions=(session, chunk("Bye!")), questions=())
    builds = expert_builds([dialogue], HashEmbedder(), scheme, "rules")
    (tree, silent), _ = sft_trees(builds, tokenizer, scheme, SFTConfig())
    first, last = sequences_of(tree)
    texts = [decode_completion(tokenizer, each.completion_token_ids[:-1], scheme.marks) for each in (first, last)]
    assert texts[1] == scheme.ending(WRITER) != texts[0]
    so_far = (*first.prompt_token_ids, *first.completion_token_ids)
    assert last.prompt_token_ids[: len(so_far)] == so_far
    engine = Speaks(tokenizer, scheme, texts[:1], texts[1:])
    task = make_task("d", session, Bank(), scheme, HashEmbedder())
    (group,) = sample_groups([task], engine, tokenizer, scheme, SAMPLING, 1, seed=1)
    (later,) = group.rollouts[0].samples[WRITER].later
    assert tuple(later.told_token_ids) == last.prompt_token_ids[len(so_far) :]
    assert len(sequences_of(silent)) == 1  # no calls, no results: that answer is the last one
