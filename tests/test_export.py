"""A checkpoint of a real run as a model folder: trainer, transformers and vLLM answer alike; the card describes it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from membuilder.errors import CheckpointError, ConfigError
from rollout.types import SamplingConfig
from tests import both_loops, forks
from tests.forks import embedder  # noqa: F401
from tests.test_snapshots import small_disk  # noqa: F401
from trainer import export as exporting
from trainer import sft
from trainer.batching.packing import TrainSequence, dense_tree, pack
from trainer.configs import ModelConfig
from trainer.export import export
from trainer.model.policy import Policy, load_model
from trainer.model.shared_prefix import hidden_states

NUM_TOKENS = 12
PROMPTS = [[5, 6, 7], [7 + i * 13 % 300 for i in range(40)], [9]]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Six steps of SFT with a checkpoint after the fourth and the sixth."""
    out = tmp_path_factory.mktemp("run") / "sft"
    arguments = [*both_loops.SFT, "data.num_train=4", "max_steps=6", "save_every=2", f"out={out}"]
    forks.finish(sft.main, (arguments,), f"{out}.log")
    return out


@pytest.fixture(scope="module")
def exported(run) -> Path:
    return export(run / "checkpoints/step_6", run / "exported", shard_size="60KB")


def test_the_weights_are_the_checkpoints_in_shards(run, exported):
    shards = sorted(exported.glob("model-*.safetensors"))
    assert len(shards) > 1 and (exported / "model.safetensors.index.json").is_file()
    found = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    expected = load_file(run / "model/model.safetensors")  # the run's own, after the same step
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    text = "2022-03-19 Kofi: hello #1"
    ours, theirs = (AutoTokenizer.from_pretrained(folder)(text)["input_ids"] for folder in (exported, run / "model"))
    assert ours == theirs
    assert GenerationConfig.from_pretrained(exported).eos_token_id is not None
    assert not (run / "exported.partial").exists()


def trainers_answer(policy: Policy, prompt: list[int], end: int) -> list[int]:
    """Greedy, by the trainer's own forward pass over packed rows."""
    answer: list[int] = []
    while len(answer) < NUM_TOKENS and answer[-1:] != [end]:
        whole = dense_tree(TrainSequence(prompt_token_ids=tuple(prompt), completion_token_ids=(*answer, 0)))
        with torch.no_grad():
            hidden = hidden_states(policy.model, pack([whole]))
        answer.append(int((hidden[-1] @ policy.model.get_output_embeddings().weight.T).argmax()))
    return answer


@pytest.fixture(scope="module")
def answers(exported) -> list[list[int]]:
    policy = Policy(load_model(exported, ModelConfig(dtype="float32"))).eval()
    end = policy.model.config.eos_token_id
    return [trainers_answer(policy, prompt, end) for prompt in PROMPTS]


def test_transformers_answers_as_the_trainer(exported, answers):
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        given = torch.tensor([prompt])
        found = model.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=NUM_TOKENS)
        assert found[0, len(prompt) :].tolist() == answer
    assert len({tuple(answer) for answer in answers}) > 1


@pytest.mark.slow
def test_vllm_answers_as_the_trainer(exported, answers):
    pytest.importorskip("vllm", reason="vLLM is not installed (launch/setup.sh)")
    from rollout.vllm_engine import VLLMEngine

    engine = VLLMEngine(exported, max_model_len=128, seed=0, dtype="float32")
    greedy = SamplingConfig(temperature=0.0, top_p=1.0, max_tokens=NUM_TOKENS)
    found = engine.generate(PROMPTS, 1, greedy, 0)
    engine.close()
    assert [list(completion.token_ids) for (completion,) in found] == answers


def test_the_card_has_settings_and_metrics(run, exported):
    card = (exported / "README.md").read_text()
    losses = [json.loads(line)["sft/loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert card.startswith("---\nlibrary_name: transformers\n") and "step 6" in card
    assert f"| sft/loss | {losses[5]} |" in card and "sessions_per_step: 7" in card
    export(run / "checkpoints/step_4", run / "earlier")
    assert f"| sft/loss | {losses[3]} |" in (run / "earlier/README.md").read_text()


def test_a_damaged_checkpoint_or_a_folder_that_exists_is_refused(run, exported, tmp_path):
    with pytest.raises(ConfigError, match="exists"):
        export(run / "checkpoints/step_6", exported)
    copy = shutil.copytree(run / "checkpoints/step_6", tmp_path / "step_6")
    weights = copy / "state/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="model.safetensors has"):
        export(copy, tmp_path / "out")
    with pytest.raises(SystemExit, match="^trainer.export: there is no checkpoint folder"):
        exporting.main([str(tmp_path / "nowhere"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("taken", "kind"), [(0, OSError), (200_000, SafetensorError)], ids=["tokenizer", "weights"])
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(run, small_disk, taken, kind):  # noqa: F811
    """256 KiB hold the weights and no tokenizer beside them; safetensors has an error of its own."""
    (small_disk / "other").write_bytes(bytes(taken))
    with pytest.raises(CheckpointError, match="could not save the model to .*No space left on device") as caught:
        export(run / "checkpoints/step_6", small_disk / "exported")
    assert isinstance(caught.value.__cause__, kind)
    assert [path.name for path in small_disk.iterdir()] == ["other"]
