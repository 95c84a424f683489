"""Both engines on a tiny model with random weights, the tokenizer and the session sampler. vLLM is the real one."""

import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from membuilder.errors import ConfigError, MemBuilderError
from membuilder.schemes.four_agents.prompts import PromptConfig, render_prompt
from membuilder.schemes.four_agents.schemas import ResponseFormat
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.types import Agent, Bank, Entry, FailureKind, Session, Turn
from rollout.hf_engine import TransformersEngine, _draw, _takes_padding, in_batches
from rollout.sampler import sample_groups, sample_rollouts
from rollout.seeding import isolated_rng, restore_rng, rng_state, seed_everything
from rollout.tokens import TokenCounter, decode_completion, encode_completion, encode_prompt, load_tokenizer
from rollout.turns import Task
from rollout.types import Completion, Engine, SamplingConfig
from tests.fakes import streamed
from tests.sequences import sequence
from trainer.batching.packing import build_tree, pack
from trainer.configs import TinyConfig
from trainer.model.policy import Policy
from trainer.model.tiny_model import build_model, train_tokenizer

CORE, EPISODIC, SEMANTIC, PROCEDURAL = Agent
TINY = TinyConfig(
    vocab_size=600, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=96, max_position=512
)
TEXTS = ["Ann: I adopted a cat called Miso. #1", "Ben: Yesterday I moved to Oslo for a new job. #2"] * 5
PLAIN = SamplingConfig(temperature=1.0, top_p=1.0, max_tokens=12)
GREEDY = SamplingConfig(temperature=0.0, top_p=1.0, max_tokens=12)
TOLERANCE = 1e-5
# The long one fills more than one block of the prefix cache, which keeps whole blocks of 128 tokens.
PROMPTS = [[5, 6, 7], [7 + i * 13 % 300 for i in range(290)], [9]]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, SCHEME.tiny_tokens(60), TINY.vocab_size)


def random_model(tokenizer: PreTrainedTokenizerFast, seed: int, *, end_scale: float = 1.0) -> Qwen3ForCausalLM:
    """Weights large enough that the next token is far from evenly spread; `end_scale` makes the end token likelier."""
    with isolated_rng():
        model = build_model(tokenizer, TINY, seed)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(std=0.1)
    model.get_input_embeddings().weight.data[tokenizer.eos_token_id] *= end_scale
    return model.eval()


@pytest.fixture(scope="module")
def model(tokenizer) -> Qwen3ForCausalLM:
    return random_model(tokenizer, seed=1)


@pytest.fixture(scope="module")
def other_model(tokenizer) -> Qwen3ForCausalLM:
    return random_model(tokenizer, seed=2)


@pytest.fixture(scope="module")
def model_dir(tokenizer, model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def same_rng(first: dict, second: dict) -> bool:
    numpy_same = all(np.array_equal(a, b) for a, b in zip(first["numpy"], second["numpy"], strict=True))
    return first["python"] == second["python"] and numpy_same and torch.equal(first["torch"], second["torch"])


@dataclass(frozen=True, kw_only=True)
class Started:
    engine: Engine
    rng_kept: bool
    """Whether construction left every global random state as it was."""
    first: list[list[Completion]]
    """Sampled from the weights on disk, before any `load_weights`."""


@pytest.fixture(scope="module", params=["vllm", "transformers", "transformers, two prompts at once"])
def started(request, model_dir) -> Iterator[Started]:
    before = rng_state()
    if request.param == "vllm":
        import numba  # noqa: F401  (vLLM must start beside it and its llvmlite: BM25 loads both)

        from rollout.vllm_engine import VLLMEngine  # here, because it takes many seconds to import

        before = rng_state()
        engine = VLLMEngine(model_dir, max_model_len=400, seed=0, dtype="float32")
    else:
        # 1500: a short prompt and the long one together, with two completions each
        engine = TransformersEngine(model_dir, tokens_at_once=0 if request.param == "transformers" else 1500)
    kept = same_rng(before, rng_state())
    yield Started(engine=engine, rng_kept=kept, first=engine.generate(PROMPTS, 2, PLAIN, seed=1))
    engine.close()


@pytest.fixture
def engine(started, model) -> Engine:
    """With the weights of `model`, whatever the test before loaded."""
    started.engine.load_weights(model.state_dict().items(), version=0)
    return started.engine


def flat(groups: list[list[Completion]]) -> list[tuple[list[int], Completion]]:
    return [(prompt, completion) for prompt, many in zip(PROMPTS, groups, strict=True) for completion in many]


@torch.no_grad()
def dense_logits(model: Qwen3ForCausalLM, prompt: list[int], completion: Completion) -> torch.Tensor:
    """(completion, V)"""
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    return model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]


def gap(model: Qwen3ForCausalLM, groups: list[list[Completion]], temperature: float = 1.0) -> float:
    """Largest |engine - transformers| log-prob of the sampled tokens."""
    gaps = []
    for prompt, completion in flat(groups):
        logprobs = (dense_logits(model, prompt, completion) / temperature).log_softmax(-1)
        own = logprobs.gather(-1, torch.tensor(completion.token_ids)[:, None]).squeeze(-1)
        gaps.append((own - torch.tensor(completion.rollout_logprobs)).abs().max().item())
    return max(gaps)


# engines


def test_each_completion_comes_alone_and_what_is_drawn_in_between_changes_none(engine):
    whole = engine.generate(PROMPTS, 3, PLAIN, seed=1)
    found = {}
    for prompt, number, completion in engine.stream(PROMPTS, 3, PLAIN, seed=1):
        found[prompt, number] = completion
        seed_everything(len(found))  # a consumer that draws and seeds as it likes
        draw()
    assert len(found) == 9
    assert [[found[prompt, number] for number in range(3)] for prompt in range(3)] == whole


def test_the_engines_draws_do_not_disturb_who_takes_the_completions(engine):
    with isolated_rng():
        seed_everything(5)
        expected = [draw() for _ in range(6)]
        seed_everything(5)
        assert [draw() for _ in engine.stream(PROMPTS, 2, PLAIN, seed=1)] == expected


def test_a_completion_is_given_while_others_are_still_decoded(engine, tokenizer):
    engine.load_weights(random_model(tokenizer, seed=1, end_scale=6.0).state_dict().items(), version=1)
    sampling = replace(PLAIN, max_tokens=60)
    lengths = [len(completion.token_ids) for *_, completion in engine.stream(PROMPTS[:1] * 4, 4, sampling, seed=1)]
    assert len(set(lengths)) > 2
    if hasattr(engine, "_llm"):  # all at once: the shortest ends first; transformers decode prompt by prompt
        assert lengths == sorted(lengths)


def test_a_stream_left_early_leaves_nothing_behind(engine, model):
    whole = engine.generate(PROMPTS, 2, PLAIN, seed=1)
    for _ in engine.stream(PROMPTS, 2, PLAIN, seed=2):
        break
    assert engine.generate(PROMPTS, 2, PLAIN, seed=1) == whole
    engine.load_weights(model.state_dict().items(), version=0)  # refused while a request is running


@pytest.mark.parametrize("started", ["vllm"], indirect=True)
@pytest.mark.parametrize("n", [1, 8])
def test_the_tokens_are_those_of_vllms_own_requests_of_n(engine, n):
    from vllm import SamplingParams

    sampling = SamplingConfig(temperature=1.0, top_p=0.9, max_tokens=30)
    found = engine.generate(PROMPTS * 5, n, sampling, seed=3)
    params = SamplingParams(n=n, temperature=1.0, top_p=0.9, max_tokens=30, logprobs=0, detokenize=False)
    with isolated_rng():
        seed_everything(3)
        own = engine._llm.generate([{"prompt_token_ids": each} for each in PROMPTS * 5], params, use_tqdm=False)
    assert [[c.token_ids for c in many] for many in found] == [
        [tuple(each.token_ids) for each in request.outputs] for request in own
    ]
    assert [[c.rollout_logprobs for c in many] for many in found] == [
        [tuple(step[t].logprob for step, t in zip(each.logprobs, each.token_ids, strict=True)) for each in one.outputs]
        for one in own
    ]


def test_construction_leaves_the_random_states_alone(started):
    assert started.rng_kept


def test_generation_leaves_the_random_states_alone(engine):
    before = rng_state()
    engine.generate(PROMPTS, 2, PLAIN, seed=9)
    assert same_rng(before, rng_state())


def test_loading_leaves_the_random_states_alone(engine, other_model):
    before = rng_state()
    engine.load_weights(other_model.state_dict().items(), version=1)
    assert same_rng(before, rng_state())


def test_logprobs_from_disk_equal_transformers(started, model):
    assert gap(model, started.first) <= TOLERANCE
    assert {completion.weight_version for _, completion in flat(started.first)} == {0}


def test_logprobs_equal_the_trainers_packed_ones(started, model_dir):
    policy = Policy(Qwen3ForCausalLM.from_pretrained(model_dir))
    sequences = [
        sequence(prompt, completion.token_ids, rollout_logprobs=completion.rollout_logprobs)
        for prompt, completion in flat(started.first)
    ]
    batch = pack([build_tree(sequences)])
    assert (policy(batch).logprobs - batch.values.rollout_logprobs).abs().max() <= TOLERANCE


def test_several_prompts_at_once_answer_as_each_does_alone(model_dir):
    """To the last token, because a prompt's own seed decides and not its neighbours."""
    several = TransformersEngine(model_dir, tokens_at_once=10**6)
    together, greedy = several.generate(PROMPTS, 4, PLAIN, seed=1), several.generate(PROMPTS, 2, GREEDY, seed=1)
    for number, prompt in enumerate(PROMPTS):
        (alone,) = several.generate([prompt], 4, PLAIN, seed=1)
        assert [each.token_ids for each in alone] == [each.token_ids for each in together[number]]
    one_by_one = TransformersEngine(model_dir).generate(PROMPTS, 2, GREEDY, seed=1)
    assert [[each.token_ids for each in group] for group in greedy] == [
        [each.token_ids for each in group] for group in one_by_one
    ]


def test_prompts_are_batched_as_long_as_they_fit_with_their_completions():
    prompts = [[0] * length for length in (5, 5, 15, 40, 1, 1, 1)]
    batches = list(in_batches(prompts, n=2, max_tokens=5, tokens_at_once=60))
    # 2 x 2 x (5 + 5), and not 3 x 2 x (15 + 5); a prompt that is too long alone; 3 x 2 x (1 + 5)
    assert [list(map(len, batch)) for batch in batches] == [[5, 5], [15], [40], [1, 1, 1]]
    assert [len(batch) for batch in in_batches(prompts, 2, 5, tokens_at_once=0)] == [1] * 7
    assert list(in_batches([], 2, 5, 60)) == []


def test_what_decides_a_token_falls_where_the_probabilities_say():
    logits = torch.tensor([0.2, 0.0, 0.3, 0.5]).log().expand(6, -1)
    chances = torch.tensor([0.0, 0.19, 0.21, 0.49, 0.51, 1 - 2**-24])
    token, logprob = _draw(logits, replace(PLAIN, max_tokens=1), chances)
    assert token.tolist() == [0, 0, 2, 2, 3, 3]
    assert logprob.exp().tolist() == pytest.approx([0.2, 0.2, 0.3, 0.3, 0.5, 0.5])


@pytest.mark.parametrize("kinds", [["full_attention"] * 2, ["linear_attention", "full_attention"]])
def test_layers_that_carry_a_state_are_given_no_padding(model_dir, kinds):
    model = Qwen3ForCausalLM.from_pretrained(model_dir)
    model.config.layer_types = kinds
    assert _takes_padding(model) == ("linear_attention" not in kinds)


def test_shape_and_order(engine):
    groups = engine.generate(PROMPTS, 3, PLAIN, seed=1)
    assert [len(group) for group in groups] == [3, 3, 3]
    for _, completion in flat(groups):
        assert 1 <= len(completion.token_ids) == len(completion.rollout_logprobs) <= PLAIN.max_tokens
    assert len({completion.token_ids for completion in groups[0]}) == 3  # samples, not copies


def test_same_seed_same_tokens_and_logprobs(engine):
    first = engine.generate(PROMPTS, 2, PLAIN, seed=1)
    other = engine.generate(PROMPTS, 2, PLAIN, seed=2)
    torch.manual_seed(77)  # what the trainer draws in between must not matter
    assert engine.generate(PROMPTS, 2, PLAIN, seed=1) == first
    assert other != first


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_logprobs_are_those_at_the_sampling_temperature(engine, model, temperature):
    groups = engine.generate(PROMPTS, 2, SamplingConfig(temperature=temperature, top_p=1.0, max_tokens=8), seed=1)
    assert gap(model, groups, temperature) <= TOLERANCE


def test_logprobs_are_those_of_the_cut_distribution(engine, model):
    groups = engine.generate(PROMPTS, 4, SamplingConfig(temperature=1.0, top_p=0.5, max_tokens=8), seed=1)
    for prompt, completion in flat(groups):
        for logits, token, logprob in zip(
            dense_logits(model, prompt, completion), completion.token_ids, completion.rollout_logprobs, strict=True
        ):
            nucleus, mass = [], 0.0
            for probability, index in zip(*logits.softmax(-1).sort(descending=True), strict=True):
                nucleus.append(index.item())
                mass += probability.item()
                if mass >= 0.5:
                    break
            assert token in nucleus
            assert logprob == pytest.approx(logits.log_softmax(-1)[token].item() - np.log(mass), abs=1e-4)


def test_greedy_takes_the_likeliest_token(engine, model):
    for prompt, completion in flat(engine.generate(PROMPTS, 1, GREEDY, seed=1)):
        assert completion.token_ids == tuple(dense_logits(model, prompt, completion).argmax(-1).tolist())


def test_greedy_logprobs_are_those_of_the_model(engine, model):
    assert gap(model, engine.generate(PROMPTS, 1, GREEDY, seed=1)) <= TOLERANCE


def test_engines_agree_on_greedy_output(engine, model_dir):
    expected = TransformersEngine(model_dir).generate(PROMPTS, 1, GREEDY, seed=3)
    actual = engine.generate(PROMPTS, 1, GREEDY, seed=4)
    assert [c.token_ids for _, c in flat(actual)] == [c.token_ids for _, c in flat(expected)]


def test_cut_completions_are_not_finished(engine, tokenizer):
    groups = engine.generate(PROMPTS, 2, replace(PLAIN, max_tokens=3), seed=1)
    for _, completion in flat(groups):
        assert len(completion.token_ids) == 3 and tokenizer.eos_token_id not in completion.token_ids
        assert not completion.finished


def test_finished_completions_end_with_the_end_token(engine, tokenizer):
    ending = random_model(tokenizer, seed=1, end_scale=6.0)
    engine.load_weights(ending.state_dict().items(), version=1)
    groups = engine.generate(PROMPTS, 8, replace(PLAIN, max_tokens=6), seed=1)
    finished = [completion for _, completion in flat(groups) if completion.finished]
    assert 0 < len(finished) < len(flat(groups))
    for _, completion in flat(groups):
        ends = [i for i, token in enumerate(completion.token_ids) if token == tokenizer.eos_token_id]
        assert ends == ([len(completion.token_ids) - 1] if completion.finished else [])
    assert gap(ending, groups) <= TOLERANCE  # the end token's own log-prob included


def test_new_weights_replace_old_ones_and_cached_prefixes(engine, model, other_model):
    old = engine.generate(PROMPTS, 2, PLAIN, seed=1)  # now every prompt is cached under the old weights
    engine.load_weights(other_model.state_dict().items(), version=5)
    new = engine.generate(PROMPTS, 2, PLAIN, seed=1)
    assert gap(model, old) <= TOLERANCE and gap(other_model, new) <= TOLERANCE
    assert gap(model, new) > 0.1
    assert {completion.weight_version for _, completion in flat(old)} == {0}
    assert {completion.weight_version for _, completion in flat(new)} == {5}


def test_a_tied_head_left_out_is_never_stale(engine, other_model):
    weights = dict(other_model.named_parameters())
    assert "lm_head.weight" not in weights
    with suppress(ValueError, MemBuilderError):  # refusing is fine
        engine.load_weights(weights.items(), version=1)
        assert gap(other_model, engine.generate(PROMPTS, 2, PLAIN, seed=1)) <= TOLERANCE


def test_weights_may_come_one_by_one(engine, other_model):
    engine.load_weights(((name, tensor.clone()) for name, tensor in other_model.state_dict().items()), version=1)
    assert gap(other_model, engine.generate(PROMPTS, 2, PLAIN, seed=1)) <= TOLERANCE


def test_loading_the_same_weights_changes_nothing(engine, model):
    before = engine.generate(PROMPTS, 1, GREEDY, seed=1)
    engine.load_weights(model.state_dict().items(), version=0)
    assert engine.generate(PROMPTS, 1, GREEDY, seed=1) == before


def test_the_engine_keeps_no_reference_to_the_trainers_tensors(engine, model, tokenizer):
    trained = random_model(tokenizer, seed=1)
    engine.load_weights(trained.state_dict().items(), version=1)
    for parameter in trained.parameters():
        parameter.data.zero_()
    assert gap(model, engine.generate(PROMPTS, 1, PLAIN, seed=1)) <= TOLERANCE


def test_incomplete_weights_are_refused(engine, other_model):
    partial = {name: tensor for name, tensor in other_model.state_dict().items() if ".layers.1." not in name}
    with pytest.raises((ValueError, MemBuilderError), match="layers.1"):
        engine.load_weights(partial.items(), version=1)


def test_weights_of_another_model_are_refused(engine, other_model):
    with pytest.raises((ValueError, RuntimeError, MemBuilderError), match="stranger"):
        engine.load_weights([*other_model.state_dict().items(), ("stranger.weight", torch.zeros(3))], version=1)


# seeding


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 1, 5 * 1_000_003])
def test_seed_everything_covers_all_generators(seed):
    with isolated_rng():
        seed_everything(seed)
        first = draw()
        second = draw()
        seed_everything(seed)
        assert draw() == first
        assert not set(first) & set(second)


def test_isolated_rng_restores_after_an_error():
    before = rng_state()
    with pytest.raises(KeyError), isolated_rng():
        seed_everything(1)
        draw()
        raise KeyError
    assert same_rng(before, rng_state())


def test_restored_states_continue_alike():
    with isolated_rng():
        state = rng_state()
        first = [draw() for _ in range(3)]
        restore_rng(state)
        assert [draw() for _ in range(3)] == first


# tokens


UNICODE = [
    "I adopted a cat called Miso.",
    "  two  spaces , a comma . and 's n't  ",
    "tabs\tand\r\nline ends\n\n\n",
    "Grüße, naïve façade, ŁÓDŹ, e\u0301 is not \u00e9",
    "日本語のテキスト 한국어 العربية ไทย",
    "👩‍👩‍👧‍👦 🏳️‍🌈 ✈️ \U0001f9ff",
    "zero\u200bwidth \ufeffmark \u2028separator \x00 null \x7f",
    '{"operations": [{"action": "ADD", "memory": "x"}]}',
    "#1 #12#3 ##4 #99 #0 [core]\n[core] skip add e1 e20",
    "",
]


@pytest.fixture(scope="module")
def saved_tokenizer(model_dir) -> PreTrainedTokenizerFast:
    return load_tokenizer(str(model_dir))


@pytest.mark.parametrize("text", UNICODE)
def test_text_survives_a_round_trip(tokenizer, saved_tokenizer, text):
    for each in (tokenizer, saved_tokenizer):
        ids = encode_completion(each, text)
        assert ids.count(each.eos_token_id) == 1 and ids[-1] == each.eos_token_id
        assert decode_completion(each, ids) == text


def test_any_text_survives_a_round_trip(tokenizer):
    source = random.Random(1)
    for _ in range(300):
        characters = (chr(source.randrange(0x110000)) for _ in range(source.randint(1, 30)))
        text = "".join(c for c in characters if not 0xD800 <= ord(c) < 0xE000)  # lone surrogates are not text
        assert decode_completion(tokenizer, encode_completion(tokenizer, text)) == text


@pytest.mark.parametrize("text", ["Ann: what does <end> mean?", "<pad>", "<end>"])
def test_text_that_spells_a_special_token_is_still_text(tokenizer, text):
    assert not set(encode_prompt(tokenizer, text)) & {tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert decode_completion(tokenizer, encode_completion(tokenizer, text)) == text


@pytest.mark.parametrize("number", range(1, 61))
def test_a_turn_number_is_one_token_everywhere(tokenizer, number):
    (token,) = encode_prompt(tokenizer, f"#{number}")
    prompt = encode_prompt(tokenizer, f"Ann: I adopted a cat #{number}\nBen: Oh! #1\n")
    answer = encode_completion(tokenizer, f'{{"#{number}":"e3","#1":"add"}}')
    assert token in prompt and token in answer
    assert tokenizer.convert_ids_to_tokens(token) == f"#{number}"


def test_numbers_are_tokens_of_their_own(tokenizer):
    assert len({tuple(encode_prompt(tokenizer, f"#{number}")) for number in range(1, 61)}) == 60


def test_an_answer_is_two_tokens_a_turn(tokenizer):
    ids = encode_completion(tokenizer, '{"#1":"e1","#12":"add","#3":"e2"}')
    expected = ['{"', "#1", '":"e1","', "#12", '":"add","', "#3", '":"e2"}', "<end>"]
    assert tokenizer.convert_ids_to_tokens(ids) == expected
    assert tokenizer.convert_ids_to_tokens(encode_completion(tokenizer, "{}")) == ["{}", "<end>"]


def test_agent_tags_are_one_token(tokenizer):
    assert [len(encode_prompt(tokenizer, f"[{agent}]\n")) for agent in Agent] == [1, 1, 1, 1]


def test_vocabulary_has_the_configured_size(tokenizer, saved_tokenizer, model):
    many = [f"word{i} thing{i * 7} place{i * 13}" for i in range(400)]
    assert len(train_tokenizer(many, SCHEME.tiny_tokens(60), TINY.vocab_size)) == TINY.vocab_size
    assert len(set(SCHEME.tiny_tokens(60))) == len(SCHEME.tiny_tokens(60))
    assert tokenizer.get_vocab() == saved_tokenizer.get_vocab()
    assert len(tokenizer) <= model.config.vocab_size < len(tokenizer) + 64
    assert model.config.tie_word_embeddings and model.config.eos_token_id == tokenizer.eos_token_id


def test_tiny_model_is_seeded(tokenizer):
    with isolated_rng():
        first, again, other = (build_model(tokenizer, TINY, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_prompt_without_template_is_the_text_itself(tokenizer):
    ids = encode_prompt(tokenizer, "Ann: hi #1\n[core]\n")
    assert tokenizer.decode(ids) == "Ann: hi #1\n[core]\n"
    assert tokenizer.eos_token_id not in ids


def test_prompt_goes_through_the_chat_template(model_dir):
    chat = load_tokenizer(str(model_dir))
    chat.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    ids = encode_prompt(chat, "Ann: hi #1")
    assert isinstance(ids, list) and chat.decode(ids) == "<user>Ann: hi #1<assistant>"


def test_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ConfigError, match=f"no tokenizer at '{tmp_path}'"):
        load_tokenizer(str(tmp_path))


def test_token_counter(tokenizer):
    count = TokenCounter(tokenizer)
    one, two = len(encode_prompt(tokenizer, "a cat")), len(encode_prompt(tokenizer, "Oslo, #12 日本"))
    assert one != two
    assert count([]) == 0
    assert count(["a cat"]) == one
    assert count(["Oslo, #12 日本", "a cat", "a cat"]) == two + 2 * one


# sampler


PROMPT_CONFIG = PromptConfig(template_set="compact", response_format=ResponseFormat.TURNS)
SCHEME = FourAgents(PROMPT_CONFIG)
SAMPLING = SamplingConfig(temperature=1.0, top_p=1.0, max_tokens=50)
KEEP_FIRST, KEEP_NONE = '{"#1":"add"}', "{}"


def task_of(name: str, text: str, entries: tuple[Entry, ...] = ()) -> Task:
    turns = tuple(Turn(id=f"{name}:{i}", speaker="Ann", role="user", text=t) for i, t in enumerate([text, "Bye."]))
    session = Session(id=name, index=0, timestamp=datetime(2023, 5, 8), turns=turns)
    shown = {agent: tuple(entry for entry in entries if entry.agent is agent) for agent in Agent}
    return Task(id=name, dialogue_id="d", session=session, bank=Bank(entries=entries), shown=shown)


class ScriptedEngine:
    """Answers by what the prompt says: a turn's text -> agent -> one answer per rollout. Records its calls."""

    max_model_len = 10_000

    def __init__(self, tokenizer: PreTrainedTokenizerFast, answers: dict[str, dict[Agent, list[str]]], finished=True):
        self.tokenizer, self.answers, self.finished = tokenizer, answers, finished
        self.calls: list[tuple[int, int, SamplingConfig, int]] = []

    def stream(self, prompts, n, sampling, seed):
        self.calls.append((len(prompts), n, sampling, seed))
        return streamed([[self._completion(answer) for answer in self._answers(prompt)[:n]] for prompt in prompts])

    def _answers(self, prompt: list[int]) -> list[str]:
        text = self.tokenizer.decode(prompt)
        (by_agent,) = [by_agent for said, by_agent in self.answers.items() if said in text]
        (answers,) = [answers for agent, answers in by_agent.items() if text.endswith(f"[{agent}]\n")]
        return answers

    def _completion(self, answer: str) -> Completion:
        ids = tuple(encode_completion(self.tokenizer, answer))
        return Completion(token_ids=ids, rollout_logprobs=(-0.5,) * len(ids), finished=self.finished, weight_version=4)


def sample(tokenizer, answers: dict[str, dict[Agent, list[str]]], tasks: list[Task], n: int, finished: bool = True):
    engine = ScriptedEngine(tokenizer, answers, finished)
    return engine, sample_groups(tasks, engine, tokenizer, SCHEME, SAMPLING, n, seed=11)


def all_agents(*answers: str, **changed: list[str]) -> dict[Agent, list[str]]:
    return {agent: changed.get(agent.value, list(answers)) for agent in Agent}


def test_one_call_and_groups_in_the_order_of_tasks(tokenizer):
    answers = {"cat": all_agents(KEEP_FIRST, KEEP_NONE), "Oslo": all_agents(KEEP_NONE, KEEP_FIRST)}
    tasks = [task_of("S1", "I have a cat."), task_of("S2", "I moved to Oslo.")]
    engine, groups = sample(tokenizer, answers, tasks, n=2)
    assert engine.calls == [(8, 2, SAMPLING, 11)]
    assert [(group.id, group.dialogue_id, group.session) for group in groups] == [
        ("S1", "d", tasks[0].session),
        ("S2", "d", tasks[1].session),
    ]
    first, second = groups
    written = [len(rollout.bank.entries) for group in groups for rollout in group.rollouts]
    assert written == [3, 0, 0, 3]
    assert {entry.source_turns for entry in first.rollouts[0].bank.entries} == {("S1:0",)}
    assert {entry.source_turns for entry in second.rollouts[1].bank.entries} == {("S2:0",)}


def test_a_rollout_joins_the_four_agents_same_numbered_completions(tokenizer):
    answers = {
        "cat": {
            CORE: [KEEP_FIRST, KEEP_NONE],
            EPISODIC: [KEEP_NONE, KEEP_FIRST],
            SEMANTIC: [KEEP_FIRST, KEEP_NONE],
            PROCEDURAL: [KEEP_NONE, KEEP_NONE],
        }
    }
    task = task_of("S1", "I have a cat.")
    _, (group,) = sample(tokenizer, answers, [task], n=2)
    first, second = group.rollouts
    assert first.bank.core_sources == ("S1:0",) and second.bank.core == ""
    assert [entry.agent for entry in first.bank.entries] == [SEMANTIC]
    assert [entry.agent for entry in second.bank.entries] == [EPISODIC]
    assert task.bank == Bank()
    for agent in Agent:
        prompt = encode_prompt(tokenizer, render_prompt(agent, task.session, task.bank, (), PROMPT_CONFIG))
        for k, rollout in enumerate(group.rollouts):
            sample_k = rollout.samples[agent]
            assert sample_k.prompt_token_ids == tuple(prompt)
            assert sample_k.text == answers["cat"][agent][k]
            assert sample_k.completion.token_ids == tuple(encode_completion(tokenizer, sample_k.text))
            assert sample_k.completion.weight_version == 4
            assert sample_k.failure is None
            assert len(sample_k.written) == (sample_k.text == KEEP_FIRST)


def test_a_rollout_comes_once_its_four_answers_exist_and_not_later(tokenizer):
    """Whatever order they come in: here the last agent's answers come first, and those of the first rollout last."""
    tasks = [task_of("S1", "I have a cat."), task_of("S2", "I moved to Oslo.")]
    answers = {"cat": all_agents(KEEP_FIRST, KEEP_NONE), "Oslo": all_agents(KEEP_NONE, KEEP_FIRST)}
    engine = ScriptedEngine(tokenizer, answers)
    forward, given = engine.stream, []

    def backwards(*arguments):
        for each in reversed(list(forward(*arguments))):
            given.append(each)
            yield each

    engine.stream, came = backwards, {}
    for task, number, rollout in sample_rollouts(tasks, engine, tokenizer, SCHEME, SAMPLING, 2, seed=11):
        came[task, number] = (len(given), rollout)
    assert {place: count for place, (count, _) in came.items()} == {(1, 1): 7, (1, 0): 8, (0, 1): 15, (0, 0): 16}
    engine.stream = forward
    groups = sample_groups(tasks, engine, tokenizer, SCHEME, SAMPLING, 2, seed=11)
    assert {place: rollout for place, (_, rollout) in came.items()} == {
        (task, number): groups[task].rollouts[number] for task in range(2) for number in range(2)
    }


def test_order_of_the_agents_answers_never_matters(tokenizer):
    answers = all_agents(KEEP_FIRST, episodic=["broken"])
    task = task_of("S1", "I have a cat.")
    _, forward = sample(tokenizer, {"cat": answers}, [task], n=1)
    _, backward = sample(tokenizer, {"cat": dict(reversed(answers.items()))}, [task], n=1)
    assert forward == backward


@pytest.mark.parametrize("broken", Agent)
def test_one_invalid_agent_keeps_the_other_three(tokenizer, broken):
    answers = {"cat": all_agents(KEEP_FIRST, **{broken.value: ["no json"]})}
    _, (group,) = sample(tokenizer, answers, [task_of("S1", "I have a cat.")], n=1)
    samples, bank = group.rollouts[0].samples, group.rollouts[0].bank
    assert samples[broken].failure.kind is FailureKind.NOT_JSON and samples[broken].written == ()
    others = [agent for agent in Agent if agent is not broken]
    assert all(samples[agent].failure is None and len(samples[agent].written) == 1 for agent in others)
    stored = [entry.agent for entry in bank.entries] + ([CORE] if bank.core else [])
    assert sorted(stored) == sorted(others)


def test_one_invalid_rollout_keeps_the_others(tokenizer):
    answers = {"cat": all_agents(KEEP_FIRST, KEEP_FIRST, semantic=[KEEP_FIRST, '{"#9":"add"}'])}
    _, (group,) = sample(tokenizer, answers, [task_of("S1", "I have a cat.")], n=2)
    first, second = (rollout.samples[SEMANTIC].failure for rollout in group.rollouts)
    assert first is None and second.kind is FailureKind.SCHEMA


def test_a_truncated_completion_is_a_failure_even_if_it_parses(tokenizer):
    _, (group,) = sample(tokenizer, {"cat": all_agents(KEEP_FIRST)}, [task_of("S1", "a cat")], n=1, finished=False)
    (rollout,) = group.rollouts
    assert {one.failure.kind for one in rollout.samples.values()} == {FailureKind.TRUNCATED}
    count = len(encode_completion(tokenizer, KEEP_FIRST))
    assert rollout.samples[CORE].failure.detail == f"no end token within {count} tokens"
    assert rollout.bank == Bank()


def test_a_failure_in_applying_is_reported_too(tokenizer):
    answers = {"cat": all_agents(KEEP_NONE, episodic=['{"#1":"e1"}'])}
    _, (group,) = sample(tokenizer, answers, [task_of("S1", "I have a cat.")], n=1)
    assert group.rollouts[0].samples[EPISODIC].failure.kind is FailureKind.UNKNOWN_TARGET


def test_agents_see_and_name_their_own_entries(tokenizer):
    entry = Entry(
        id="m1", agent=EPISODIC, text="a dog called Rex", session=0, timestamp=datetime(2023, 5, 1), source_turns=()
    )
    answers = {"cat": all_agents(KEEP_NONE, episodic=['{"#1":"e1"}'])}
    _, (group,) = sample(tokenizer, answers, [task_of("S1", "I have a cat.", (entry,))], n=1)
    seen = {agent: tokenizer.decode(one.prompt_token_ids) for agent, one in group.rollouts[0].samples.items()}
    assert [agent for agent, text in seen.items() if "e1 a dog called Rex" in text] == [EPISODIC]
    assert group.rollouts[0].bank.entries[-1].supersedes == ("m1",)


def test_prompts_of_a_session_share_the_dialogue(tokenizer):
    _, (group,) = sample(tokenizer, {"cat": all_agents(KEEP_NONE)}, [task_of("S1", "I have a cat.")], n=1)
    prompts = [one.prompt_token_ids for one in group.rollouts[0].samples.values()]
    dialogue = encode_prompt(tokenizer, "2023-05-08 00:00\nAnn: I have a cat. #1\nAnn: Bye. #2")
    assert {prompt[: len(dialogue)] for prompt in prompts} == {tuple(dialogue)}


def test_real_engine_and_sampler_together(engine, tokenizer):
    task = task_of("S1", "I have a cat.")
    sampling = replace(PLAIN, max_tokens=5)
    groups = [sample_groups([task], engine, tokenizer, SCHEME, sampling, 3, seed=11) for _ in range(2)]
    assert groups[0] == groups[1]
    (group,) = groups[0]
    failures = {one.failure.kind for rollout in group.rollouts for one in rollout.samples.values()}
    assert failures <= {FailureKind.TRUNCATED, FailureKind.NOT_JSON, FailureKind.SCHEMA}


class SleepingLLM:
    """vLLM's side of sleep mode, which its CPU build lacks; tests/gpu/test_sleep.py runs the real one."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def sleep(self, level: int) -> None:
        self._calls.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self._calls.append(f"wake {tags}")

    def collective_rpc(self, method: str, kwargs: dict) -> None:
        self._calls.append(f"{method} {[name for name, _ in kwargs['weights_iterator']]}")

    def reset_prefix_cache(self) -> bool:
        return True


def test_torch_gives_its_memory_back_before_vllm_takes_any(monkeypatch):
    """Both times: a gigabyte that torch merely keeps is one that vLLM cannot map."""
    from rollout.vllm_engine import VLLMEngine

    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty"))
    engine = object.__new__(VLLMEngine)
    vars(engine).update(_llm=SleepingLLM(calls), _sleeps=True, _asleep=False, _names={"a"}, _version=0)
    engine.sleep()
    engine.load_weights([("a", torch.zeros(1))], version=1)
    engine.load_weights([("a", torch.zeros(1))], version=2)  # awake: nothing to give back
    loaded = "reload_weights ['a']"
    assert calls == ["sleep 2", "empty", "wake ['weights']", loaded, "empty", "wake ['kv_cache']", loaded]


# prompts that are too long


def test_engines_say_how_much_they_read(started, model_dir):
    assert started.engine.max_model_len in (400, TINY.max_position)
    assert TransformersEngine(model_dir, max_model_len=77).max_model_len == 77


def test_one_huge_entry_costs_one_agent_the_session_and_nothing_else(engine, tokenizer):
    """Beside a session that fits, as in any call of a run."""
    huge = Entry(
        id="m1", agent=EPISODIC, text="a dog " * 4000, session=0, timestamp=datetime(2023, 5, 1), source_turns=()
    )
    tasks = [task_of("S1", "I have a cat.", (huge,)), task_of("S2", "I moved to Oslo.")]
    whole, sampling = replace(PROMPT_CONFIG, max_entry_chars=30_000), replace(PLAIN, max_tokens=5)
    first, second = sample_groups(tasks, engine, tokenizer, FourAgents(whole), sampling, 2, seed=11)
    for rollout in first.rollouts:
        left_out = rollout.samples[EPISODIC]
        assert (left_out.completion, left_out.text, left_out.written) == (None, None, ())
        assert left_out.failure.kind is FailureKind.PROMPT_TOO_LONG
        assert f"the prompt's {len(left_out.prompt_token_ids)} tokens" in left_out.failure.detail
        assert len(left_out.prompt_token_ids) > 4000
        assert rollout.bank.entries[0] == huge
    asked = [s for rollout in first.rollouts for agent, s in rollout.samples.items() if agent is not EPISODIC]
    asked += [sample for rollout in second.rollouts for sample in rollout.samples.values()]
    assert len(asked) == 2 * 3 + 2 * 4
    for one in asked:
        assert 1 <= len(one.completion.token_ids) <= 5
        assert one.failure is None or one.failure.kind is not FailureKind.PROMPT_TOO_LONG
    # cut as by default it fits, and the bank keeps it whole
    (cut, _) = sample_groups(
        tasks, engine, tokenizer, FourAgents(replace(whole, max_entry_chars=200)), sampling, 1, seed=11
    )
    assert cut.rollouts[0].samples[EPISODIC].completion is not None and cut.rollouts[0].bank.entries[0] == huge


def test_a_prompt_may_be_as_long_as_leaves_room_for_the_answer(tokenizer):
    task = task_of("S1", "I have a cat.")
    engine = ScriptedEngine(tokenizer, {"cat": all_agents(KEEP_NONE)})
    (group,) = sample_groups([task], engine, tokenizer, SCHEME, SAMPLING, 1, seed=11)
    longest = max(len(one.prompt_token_ids) for one in group.rollouts[0].samples.values())
    for room, num_failures in ((longest, 0), (longest - 1, 1)):
        engine.max_model_len = room + SAMPLING.max_tokens
        (group,) = sample_groups([task], engine, tokenizer, SCHEME, SAMPLING, 1, seed=11)
        failures = [one.failure for one in group.rollouts[0].samples.values() if one.failure is not None]
        assert len(failures) >= num_failures and bool(failures) == bool(num_failures)


def test_where_no_prompt_fits_the_engine_is_not_asked(tokenizer):
    engine = ScriptedEngine(tokenizer, {"cat": all_agents(KEEP_NONE)})
    engine.max_model_len = SAMPLING.max_tokens + 1
    (group,) = sample_groups([task_of("S1", "I have a cat.")], engine, tokenizer, SCHEME, SAMPLING, 2, seed=11)
    assert engine.calls == []
    kinds = [one.failure.kind for rollout in group.rollouts for one in rollout.samples.values()]
    assert kinds == [FailureKind.PROMPT_TOO_LONG] * 8
