"""A checkpoint of a real run as a model folder: trainer, transformers and vLLM answer alike; the card describes it."""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GPT2Config

from membuilder.errors import CheckpointError, ConfigError
from rollout.gguf import SMOLLM2
from rollout.tokens import encode_prompt
from rollout.types import SamplingConfig
from tests import both_loops, forks
from tests.forks import embedder  # noqa: F401
from tests.patience import HANGS
from tests.test_snapshots import small_disk  # noqa: F401
from trainer import export as exporting
from trainer import sft
from trainer.batching.packing import TrainSequence, dense_tree, pack
from trainer.checkpoint.model_card import METRICS, model_card
from trainer.configs import ModelConfig
from trainer.export import export
from trainer.model.policy import Policy, load_trainable
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
    policy = Policy(load_trainable(exported, ModelConfig(dtype="float32")).model).eval()
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


def test_the_card_says_what_the_model_is_and_how_to_use_it(run, exported):
    card = (exported / "README.md").read_text()
    losses = [json.loads(line)["sft/loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert ModelCard(card).data.library_name == "transformers" and "step 6" in card
    assert f"| sft/loss | {losses[5]} |" in card and "sessions_per_step: 7" in card
    assert "AutoModelForCausalLM.from_pretrained" in card and "launch/serve.sh" in card and "Licence" in card
    assert "trained from random weights" in card and str(run.parent) not in card
    export(run / "checkpoints/step_4", run / "earlier")
    assert f"| sft/loss | {losses[3]} |" in (run / "earlier/README.md").read_text()
    assert (run / "model/README.md").read_text() == card, "a run's own models carry it too"


def test_the_card_has_ten_metrics_and_knows_the_base_model_through_local_folders(tmp_path):
    """An RL run starts from the folder of an SFT run, which started from a model of the hub."""
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 0} | dict.fromkeys(METRICS, 0.5)) + "\n")
    first = model_card(
        {"model": {"path": "org/base-1B"}, "out": "x", "data": {"path": "/home/me/x.jsonl"}}, tmp_path, 1
    )
    assert first.count(" | 0.5 |") == 10 and "/home/me" not in first
    assert ModelCard(first).data.base_model == "org/base-1B" and "huggingface.co/org/base-1B" in first
    first = first.replace("library_name:", "license: apache-2.0\nlibrary_name:")
    (tmp_path / "README.md").write_text(first)
    second = ModelCard(model_card({"model": {"path": str(tmp_path)}}, tmp_path, 1))
    assert (second.data.base_model, second.data.license) == ("org/base-1B", "apache-2.0")
    assert str(tmp_path) not in str(second) and "Licence: apache-2.0" in str(second)
    (tmp_path / "README.md").unlink()
    assert "a local model" in model_card({"model": {"path": str(tmp_path)}}, tmp_path, 1)
    gone = model_card({"model": {"path": str(tmp_path / "gone")}}, tmp_path, 1)
    assert "a local model" in gone and str(tmp_path) not in gone
    thinks = {"model": {"path": None}, "sampling": {"thinking_budget": 40}}
    assert "Its thinking was closed after 40 tokens in training" in model_card(thinks, tmp_path, 1)
    assert "Its thinking" not in first


def test_the_card_says_that_weights_were_dequantized_and_the_next_run_says_it_too(tmp_path):
    own = model_card({"model": {"path": "/home/me/Model.Q4_1.gguf"}}, tmp_path, 1)
    assert "a local model, its weights dequantized" in own and "/home/me" not in own
    packaged = model_card({"model": {"path": SMOLLM2}}, tmp_path, 1)
    data = ModelCard(packaged).data
    assert (data.base_model, data.license) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    (tmp_path / "README.md").write_text(packaged)
    second = model_card({"model": {"path": str(tmp_path)}}, tmp_path, 1)
    assert ModelCard(second).data.base_model == data.base_model and "dequantized from a GGUF file" in second
    assert "dequantized" not in model_card({"model": {"path": "org/base-1B"}}, tmp_path, 1)


def test_a_tiny_model_has_a_chat_template_that_asks_what_training_asked(exported):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    text = "2022-03-19 Kofi: hello #1 <end> {{ x }}"
    plain = AutoTokenizer.from_pretrained(exported)
    plain.chat_template = None
    assert tokenizer.chat_template is not None
    assert encode_prompt(tokenizer, text.replace("<end>", "")) == encode_prompt(plain, text.replace("<end>", ""))
    assert tokenizer.eos_token_id not in encode_prompt(tokenizer, text)


class Hub(BaseHTTPRequestHandler):
    """As much of the model hub as an upload needs, on loopback."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.server.asked.append((self.path, self.headers["authorization"], body))
        root = f"http://127.0.0.1:{self.server.server_port}/me/m"
        answers = {
            "/api/repos/create": {"url": root, "name": "me/m"},
            "/api/validate-yaml": {"errors": [], "warnings": []},
            "/api/models/me/m/commit/main": {"commitOid": "1", "commitUrl": f"{root}/commit/1", "pullRequestUrl": None},
        }
        answer = answers.get(self.path)
        if self.path == "/api/models/me/m/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            answer = {"files": [{"path": name} | modes for name in names]}
        content = json.dumps(answer).encode()
        self.send_response(404 if answer is None or self.server.refuses else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.mark.slow
@pytest.mark.parametrize("refuses", [False, True])
def test_a_model_is_uploaded_to_the_hub_or_its_folder_stands(run, tmp_path, refuses):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.refuses = [], refuses
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_secret"}
    command = [sys.executable, "-m", "trainer.export", str(run / "checkpoints/step_6"), str(tmp_path / "m")]
    command += ["--push-to-hub", "me/m", "--private"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | hub, timeout=HANGS, check=False)
    server.shutdown()
    server.server_close()
    assert (tmp_path / "m/model.safetensors").is_file() and "hf_secret" not in result.stdout + result.stderr
    created = json.loads(server.asked[0][2])
    assert created["visibility"] == "private" and server.asked[0][1] == "Bearer hf_secret"
    if refuses:
        assert result.returncode == 1 and "is whole" in result.stderr and "hf upload me/m" in result.stderr
        assert "Traceback" not in result.stderr
        return
    assert result.returncode == 0 and f"uploaded to {hub['HF_ENDPOINT']}/me/m" in result.stdout
    lines = [json.loads(line) for line in server.asked[-1][2].splitlines()]
    sent = {line["value"]["path"] for line in lines if line["key"] == "file"}
    assert sent == {path.name for path in (tmp_path / "m").iterdir()} >= {"README.md", "model.safetensors"}


@pytest.mark.parametrize("left_out", ["lm_head.weight", "transformer.wte.weight"])
def test_a_tied_head_is_found_whatever_the_embedding_is_called(tmp_path, left_out):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2)).eval()
    model.save_pretrained(tmp_path)
    kept = {name: weight for name, weight in model.state_dict().items() if name != left_out}
    again, ids = exporting._model(tmp_path, kept, torch.float32).eval(), torch.tensor([[5, 9, 33]])
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    torch.testing.assert_close(again(ids).logits, model(ids).logits)


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
