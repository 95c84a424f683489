"""Experts on their way: engines report them, turns, trees and the journal keep them, a run that goes on has them."""

import json
import os
import shutil
import subprocess
import sys
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from membuilder.errors import ConfigError
from rollout.equal_prompts import DrawsApart
from rollout.hf_engine import TransformersEngine
from rollout.policy_folder import load_policy
from rollout.routed_experts import RoutedExperts, RouterReplay, UnreportedError
from rollout.types import Completion, LaterTurn, Rollout, Sample, SamplingConfig
from tests import small_rl
from tests.test_engines import TEXTS
from trainer import rl
from trainer.batching.packing import TrainSequence, build_tree, pack_on
from trainer.configs import Attention
from trainer.experience.collector import Collector
from trainer.experience.training_batch import prompt_experts, sampled_sequences
from trainer.model.make_policy import make_policy
from trainer.model.policy import Policy
from trainer.model.router_replay import COMPARED, MISMATCH, MISMATCHED, use_router_replay
from trainer.model.tiny_model import train_tokenizer
from trainer.run_setup import make_engine

CPU = torch.device("cpu")
PLAIN = SamplingConfig(temperature=1.0, top_p=1.0, max_tokens=8)
PROMPTS = [[5, 6, 7], [7 + i * 13 % 300 for i in range(70)], [9]]
LAYERS = 2
"""Of three, because one is dense."""


def build_mixture(tokenizer, _=None, seed: int = 1, std: float = 0.15) -> Qwen3MoeForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64, hidden_size=32, intermediate_size=64, moe_intermediate_size=32,
        num_hidden_layers=3, mlp_only_layers=[1], num_attention_heads=2, num_key_value_heads=1, head_dim=32,
        num_experts=8, num_experts_per_tok=2, norm_topk_prob=True, max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=std)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    tokenizer = train_tokenizer(TEXTS, ["#1", "#2"], 600)
    folder = tmp_path_factory.mktemp("mixture")
    build_mixture(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def replaying_policy(folder: Path, dtype: torch.dtype = torch.float32) -> Policy:
    policy = make_policy(load_policy(folder, dtype=dtype).model, Attention.AUTO, CPU)
    use_router_replay(policy, RouterReplay.ALWAYS)
    return policy.eval()


def sequences_of(prompt: list[int], completions: list[Completion]) -> list[TrainSequence]:
    rollouts = [
        Rollout(
            samples={
                "role": Sample(
                    prompt_token_ids=tuple(prompt), completion=each, text="", written=(), failure=None
                )
            },
            bank=None,
        )
        for each in completions
    ]  # fmt: skip
    of_prompts = prompt_experts(rollouts)
    return [s for each in rollouts for s in sampled_sequences(each.samples["role"], of_prompts=of_prompts)]


def counts_and_gap(policy: Policy, groups: list[list[TrainSequence]]) -> tuple[float, float, float]:
    """The pairs that differ, the pairs that were compared, and the mean |trainer - engine| log-prob."""
    batch = pack_on([build_tree(sequences) for sequences in groups], CPU, policy.windows)
    output = policy(batch, 1.0, lambda logprobs, entropy, rows: (logprobs, {}))
    gap = (output.head.logprobs - batch.values.rollout_logprobs).abs().mean()
    return float(output.metrics[MISMATCHED]), float(output.metrics[COMPARED]), float(gap)


def assert_replay_narrows_the_gap(folder: Path, groups: list[list[TrainSequence]]) -> None:
    policy = replaying_policy(folder)
    num_tokens = sum(build_tree(sequences).num_tokens for sequences in groups)
    differing, compared, gap = counts_and_gap(policy, groups)
    assert compared == LAYERS * num_tokens and differing <= 0.01 * compared and gap < 1e-4
    with torch.no_grad():  # a router in another precision
        for name, weight in policy.model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                weight.copy_(weight.to(torch.float8_e4m3fn))
    differing, _, replayed = counts_and_gap(policy, groups)
    policy.replays_experts = False
    batch = pack_on([build_tree(sequences) for sequences in groups], CPU, policy.windows)
    own = float((policy(batch).logprobs - batch.values.rollout_logprobs).abs().mean())
    assert differing > 0 and replayed < own


@pytest.mark.parametrize("tokens_at_once", [0, 2000])
def test_the_transformers_engine_reports_what_the_trainer_chooses(folder, tokens_at_once):
    engine = TransformersEngine(folder, max_model_len=200, tokens_at_once=tokens_at_once, routed_experts=True)
    groups = engine.generate(PROMPTS, 2, PLAIN, seed=1)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for each in group:
            rows = each.routed_experts.array()
            assert rows.shape == (len(prompt) + len(each.token_ids) - 1, LAYERS, 2)
    found = [sequences_of(prompt, group) for prompt, group in zip(PROMPTS, groups, strict=True)]
    assert_replay_narrows_the_gap(folder, found)
    apart = DrawsApart(engine).generate([PROMPTS[0], PROMPTS[0]], 1, PLAIN, seed=1)
    assert all(each.routed_experts is not None for (each,) in apart)
    unasked = TransformersEngine(folder, max_model_len=200, tokens_at_once=tokens_at_once)
    assert [[each.token_ids for each in group] for group in unasked.generate(PROMPTS, 2, PLAIN, seed=1)] == [
        [each.token_ids for each in group] for group in groups
    ]
    assert unasked.generate(PROMPTS[:1], 1, PLAIN, seed=1)[0][0].routed_experts is None


def test_vllm_reports_what_the_trainer_chooses(folder):
    """The real one, in a process of its own where Triton is interpreted: it takes a minute of CPU time."""
    command = [sys.executable, "-m", "tests.vllm_experts", str(folder), json.dumps(PROMPTS)]
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(found) == 2 * 2 * len(PROMPTS)
    for of_round in (found[: len(found) // 2], found[len(found) // 2 :]):
        groups = []
        for prompt in PROMPTS:
            completions = []
            for number, each in enumerate(each for each in of_round if each["prompt"] == prompt):
                # the first carries the prompt's experts too, for all; what vLLM read from its cache is among them
                length = (len(prompt) if number == 0 else 0) + len(each["ids"]) - 1
                assert each["shape"] == [length, LAYERS, 2]
                rows = np.frombuffer(b64decode(each["experts"]), "u1").reshape(each["shape"])
                completions.append(
                    completion(tuple(each["ids"]), RoutedExperts.of(rows), logprobs=tuple(each["logprobs"]))
                )
            groups.append(sequences_of(prompt, completions))
        assert_replay_narrows_the_gap(folder, groups)


def test_vllm_without_triton_cannot_and_says_why(folder, caplog):
    if torch.cuda.is_available():
        pytest.skip("on CUDA vLLM has Triton, so that it can")
    from rollout.vllm_engine import VLLMEngine  # here, because it takes many seconds to import

    reason = "vLLM cannot report here which experts it chooses: .*AuxOutput Connector requires Model Runner V2"
    with pytest.raises(UnreportedError, match=f"(?s){reason}"):
        VLLMEngine(folder, max_model_len=200, seed=0, dtype="float32", routed_experts=True)
    config = small_rl.config_of(Path("unused"), engine="vllm", router_replay=RouterReplay.ALWAYS, max_model_len=200)
    with pytest.raises(ConfigError, match=f"(?s)router_replay=always: {reason}.*or engine=transformers, which reports"):
        make_engine(config, folder, routed_experts=True)
    config.router_replay = RouterReplay.AUTO
    engine = make_engine(config, folder, routed_experts=True)
    assert "no sampling/router_mismatch is known" in caplog.text
    assert engine.generate(PROMPTS[:1], 1, PLAIN, seed=1)[0][0].routed_experts is None
    engine.close()


def completion(ids: tuple[int, ...], experts: RoutedExperts | None, logprobs: tuple[float, ...] = ()) -> Completion:
    logprobs = logprobs or (-1.0,) * len(ids)
    return Completion(token_ids=ids, rollout_logprobs=logprobs, finished=True, weight_version=0, routed_experts=experts)


def numbered(*places: int) -> RoutedExperts:
    """Of one layer with one expert, which is called as the token's place."""
    return RoutedExperts.of(np.array([[[place]] for place in places]).reshape(len(places), 1, 1))


def told(sequence: TrainSequence) -> list[int]:
    return [int(row[0, 0]) for part in sequence.routed_experts for row in part.array()]


def test_turns_carry_the_experts_of_their_own_tokens_only():
    """A prompt of 3 tokens, an answer of 2, 2 told, an answer of 3: its engine tells of all 9 inputs."""
    later = completion((20, 21, 22), numbered(*range(9))).behind((8, 9))
    assert later.routed_experts == numbered(4, 5, 6, 7, 8)
    first = completion((10, 11), numbered(*range(4)))
    turn = LaterTurn(told_token_ids=(8, 9), completion=later, text="")
    sample = Sample(
        prompt_token_ids=(1, 2, 3), completion=first, text="", written=(), failure=None, later=(turn,)
    )  # fmt: skip
    of_prompts = prompt_experts([Rollout(samples={"role": sample}, bank=None)])
    one, two = sampled_sequences(sample, of_prompts=of_prompts)
    assert told(one) == [*range(4)] and told(two) == [*range(9)]
    assert len(two.input_token_ids) == 9
    assert [each.routed_experts for each in sampled_sequences(sample)] == [(), ()]  # its prompt's are known to nobody


def test_rollouts_of_a_prompt_have_the_experts_that_the_first_one_carries():
    carried = completion((10, 11), numbered(0, 1, 2, 3))
    bare = completion((12, 13, 14), numbered(30, 31))
    one, two = sequences_of([1, 2, 3], [carried, bare])
    assert told(one) == [0, 1, 2, 3] and told(two) == [0, 1, 2, 30, 31]
    assert [told(each) for each in sequences_of([1, 2, 3], [bare, carried])] == [[0, 1, 2, 30, 31], [0, 1, 2, 3]]
    assert [told(each) for each in sequences_of([1, 2, 3], [bare, bare])] == [[], []]


def test_a_run_that_goes_on_has_the_experts_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(small_rl, "build_model", build_mixture_to_train)
    settings = dict(save_every=1, parity_every=10, router_replay=RouterReplay.ALWAYS)
    whole = small_rl.Run(small_rl.config_of(tmp_path / "whole", **settings))
    expected = whole.train()
    assert all(0 <= line[MISMATCH] < 0.05 for line in expected) and not any(MISMATCHED in line for line in expected)

    class Killed(Exception): ...

    def dies(scored, *rest):
        if versions(scored) == {1}:
            raise Killed
        return make_batch(scored, *rest)

    make_batch = rl.make_batch
    monkeypatch.setattr(rl, "make_batch", dies)
    with pytest.raises(Killed):
        small_rl.Run(small_rl.config_of(tmp_path / "killed", **settings)).train()
    monkeypatch.setattr(rl, "make_batch", make_batch)
    monkeypatch.setattr(Collector, "dense", lambda *_: pytest.fail("sampled again"))
    shutil.rmtree(tmp_path / "killed" / "sft")  # the start of a run is made anew, and is the same
    again = small_rl.Run(small_rl.config_of(tmp_path / "killed", resume="auto", **settings))
    found = again.train()
    assert torch.equal(small_rl.weights(again.policy), small_rl.weights(whole.policy))
    timeless = [{key: value for key, value in line.items() if "time" not in key} for line in expected]
    assert [{key: value for key, value in line.items() if "time" not in key} for line in found] == timeless


def build_mixture_to_train(tokenizer, sizes, seed: int) -> Qwen3MoeForCausalLM:
    return build_mixture(tokenizer, sizes, seed, std=32**-0.5)


def versions(scored) -> set[int]:
    samples = [s for group in scored for rollout in group.rollouts for s in rollout.samples.values() if s.completion]
    return {sample.completion.weight_version for sample in samples}
