"""What SFT trains on and what it is validated on; that it stops where prompts must not be shared."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from transformers import Qwen3Config, Qwen3ForCausalLM

from membuilder.datasets.windows import in_windows
from membuilder.errors import ConfigError
from membuilder.generate.dialogue import generate
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.schemas import ResponseFormat
from membuilder.schemes.four_agents.scheme import FourAgents
from tests.fakes import HashEmbedder
from trainer import sft
from trainer.batching.packing import Node, TrainSequence, build_tree, sequences_of
from trainer.configs import Attention, DataConfig, ModelConfig, TinyConfig
from trainer.data.corpus import Corpus, expert_builds, sft_builds, training_text
from trainer.data.sft_examples import sft_trees, smallest_group, split_sessions
from trainer.distributed.process_group import World, start_accelerator
from trainer.logs.run_log import RunLog
from trainer.model import shared_prefix
from trainer.model.tiny_model import build_model, train_tokenizer
from trainer.run_setup import SFTParts, checked_trees
from trainer.sft_config import SFTConfig

PROMPTS = PromptConfig(template_set="compact", response_format=ResponseFormat.TURNS, entries_shown=0)
SCHEME = FourAgents(PROMPTS)
SIZES = TinyConfig(vocab_size=600, hidden_size=32, num_layers=1, intermediate_size=32)


def tree_of(session: str, *completions: tuple[int, ...], prompt: tuple[int, ...] = (1, 2, 3)) -> Node:
    return build_tree(
        [TrainSequence(prompt_token_ids=prompt, completion_token_ids=each) for each in completions], session
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_session_that_counts_four_times_is_never_trained_on_and_validated(seed):
    """Ten sessions of the file four times each, ten extra ones once: a fifth of the twenty are validated, once each."""
    repeated = [tree_of(f"file/{number}", (number, 9)) for number in range(10)]
    extra = [tree_of(f"extra/{number}", (number, 8)) for number in range(10)]
    training, validation = split_sessions([*repeated * 4, *extra], 0.2, seed)
    assert len(validation) == len({tree.id for tree in validation}) == 4
    times = Counter(tree.id for tree in training)
    assert not set(times) & {tree.id for tree in validation}
    assert times.keys() | {tree.id for tree in validation} == {tree.id for tree in (*repeated, *extra)}
    assert all(count == (4 if name.startswith("file") else 1) for name, count in times.items())


def test_the_whole_and_the_cut_tree_of_a_session_are_on_one_side():
    trees = [tree for number in range(6) for tree in (tree_of(f"d/{number}", (1,)), tree_of(f"d/{number}", (2,)))]
    training, validation = split_sessions(trees, 0.5, seed=3)
    assert (len(training), len(validation)) == (6, 6)
    assert not {tree.id for tree in training} & {tree.id for tree in validation}


def test_one_session_at_least_is_validated():
    training, validation = split_sessions([tree_of(name, (1,)) for name in "ab"], 0.01, seed=1)
    assert (len(training), len(validation)) == (1, 1)


def test_the_same_session_four_times_is_too_little_to_split():
    config = SFTConfig(prompts=PROMPTS)
    builds = expert_builds(
        [in_windows(generate(1, 1, "train", num_sessions=1)[0], 60)], HashEmbedder(), SCHEME, "rules"
    )
    tokenizer = train_tokenizer(training_text(builds, SCHEME), SCHEME.tiny_tokens(60), 600)
    again = sft_builds(Corpus(train=builds), DataConfig(path="talk.json", repeat=4))
    found = sft_trees(again, tokenizer, SCHEME, config)
    with pytest.raises(ConfigError, match="1 sessions to train on"):
        checked_trees(config, start_accelerator(1.0), *found)


def test_the_check_takes_the_smallest_session_that_shares_something():
    alone, small, large = (
        tree_of("alone", (1,), prompt=(1,)), tree_of("small", (4, 5), (6,)), tree_of("large", (4, 5, 6), (6, 7)),
    )  # fmt: skip
    assert [len(sequences_of(tree)) for tree in (alone, small, large)] == [1, 2, 2]
    assert smallest_group([large, alone, small]) == [sequences_of(small)]
    assert smallest_group([alone]) == []


@pytest.fixture
def run(tmp_path) -> Callable[..., sft.SFTResult]:
    """One step of SFT of a tiny model, whose sliding window is `window`."""
    builds = expert_builds([in_windows(d, 3) for d in generate(2, 1, "train", 2)], HashEmbedder(), SCHEME, "rules")
    tokenizer = train_tokenizer(training_text(builds, SCHEME), SCHEME.tiny_tokens(3), SIZES.vocab_size)
    config = SFTConfig(out=str(tmp_path), prompts=PROMPTS, max_steps=1, shared_bound=1e-5, save_at_end=False)
    accelerator, log = start_accelerator(1.0), RunLog(tmp_path, None, {}, "sft")
    trees, _ = sft_trees(builds, tokenizer, SCHEME, config)

    def run(attention: Attention, window: int | None = None) -> sft.SFTResult:
        model = build_model(tokenizer, SIZES, 1)
        sizes = model.config.to_dict() | {"use_sliding_window": window is not None, "sliding_window": window}
        windowed = Qwen3ForCausalLM(Qwen3Config(**sizes | {"layer_types": None, "max_window_layers": 0}))
        windowed.load_state_dict(model.state_dict())
        parts = SFTParts(
            model=windowed,
            tokenizer=tokenizer,
            trees=trees,
            accelerator=accelerator,
            world=World(),
            embedder=HashEmbedder(),
            log=log,
        )
        return sft.train(replace(config, model=ModelConfig(attention=attention)), parts)

    return run


def test_sft_shares_prompts_in_models_with_windows(run):
    shared, whole = (run(attention, window=16).validation_loss for attention in (Attention.SHARED, Attention.DENSE))
    assert shared == pytest.approx(whole, rel=1e-5)
    assert shared != pytest.approx(run(Attention.SHARED).validation_loss, rel=1e-5)


def test_sft_does_not_share_prompts_where_that_gives_other_numbers(run, monkeypatch, caplog):
    """As if what stands above a node were never read."""
    shared = run(Attention.SHARED).validation_loss
    honest = shared_prefix.merged_attention

    def forgetful(query, key, value, plan, *how):
        return honest(query, key, value, [call for call in plan if call.causal], *how)

    monkeypatch.setattr(shared_prefix, "merged_attention", forgetful)
    with pytest.raises(ConfigError, match="model.attention=shared: shared prompts give other log-probs"):
        run(Attention.SHARED)
    assert run(Attention.AUTO).validation_loss == pytest.approx(shared, rel=1e-5)
    assert "every sequence is run whole: shared prompts give other log-probs" in caplog.text
