"""Whole LoRA runs: they learn, go on bit for bit, are the same on two processes, and what they leave is a model."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from membuilder.errors import ConfigError
from tests import both_loops, forks, launchers, lora_runs
from tests.forks import embedder  # noqa: F401
from tests.launchers import rows
from tests.lives import metrics, same_run
from tests.test_architectures import SEQUENCES
from tests.test_many_processes import largest_gap
from trainer import rl, sft
from trainer.export import export
from trainer.model.dense_copies import own_logprobs

pytestmark = pytest.mark.slow
MODES = {"ddp": "DistributedDataParallel", "zero2": "DeepSpeedEngine, ZeRO stage 2"}
MERGED = "model/model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny model that has begun to answer in the format."""
    out = tmp_path_factory.mktemp("base")
    forks.finish(sft.main, ([*both_loops.SFT, "max_steps=30", f"out={out}/sft"],), out / "log")
    return out / "sft/model"


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    forks.finish(lora_runs.main, (out, base), out / "log")
    return out


@pytest.fixture(scope="module")
def together(base, tmp_path_factory) -> Callable[..., Path]:
    """Mode and keys -> the runs in two processes; DeepSpeed's file asks for bfloat16, as the committed ones do."""
    plain = launchers.accelerate_file

    def in_bfloat16(mode: str, folder: Path) -> str:
        found, deepspeed = plain(mode, folder), folder / "deepspeed.json"
        if deepspeed.exists():
            deepspeed.write_text(json.dumps(json.loads(deepspeed.read_text()) | {"bf16": {"enabled": True}}))
        return found

    @cache
    def run(mode: str, *more: str) -> Path:
        folder = tmp_path_factory.mktemp(mode)
        with launchers.nodes(mode, folder, "tests.lora_runs", str(folder / "run"), str(base), *more) as started:
            for node in started:
                assert node.launcher.wait(400) == 0, node.log.read_text()[-4000:]
            assert MODES[mode] in started[0].log.read_text()
        return folder / "run"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launchers, "accelerate_file", in_bfloat16)
        yield run


def test_the_runs_learn_something(alone):
    losses = [row["sft/loss"] for row in rows(alone / "sft")]
    assert len(losses) == 20 and sum(losses[-3:]) < 0.8 * sum(losses[:3])
    learned = rows(alone / "rl")
    assert len(learned) == 6 and all(row["grad_norm"] > 0 for row in learned)
    assert learned[-1]["kl"] > 10 * learned[0]["kl"] > 0  # the second update of a step is no longer the reference


@pytest.mark.parametrize("name", lora_runs.RUNS)
def test_a_run_goes_on_bit_for_bit(alone, name):
    same_run(alone / f"again_{name}", alone / name)
    adapters = [load_file(alone / run / "adapter/adapter_model.safetensors") for run in (name, f"again_{name}")]
    assert all(torch.equal(tensor, adapters[1][key]) for key, tensor in adapters[0].items())


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_give_the_numbers_of_one(alone, together, mode):
    run = together(mode)
    for name, keys in (("sft", ("sft/loss",)), ("rl", ("loss", "reward/mean", "kl", "entropy", "num_tokens"))):
        for expected, found in zip(rows(alone / name), rows(run / name), strict=True):
            assert {key: found[key] for key in keys} == pytest.approx({key: expected[key] for key in keys}, abs=1e-5)
            assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4, abs=1e-5)
        assert largest_gap(load_file(alone / name / MERGED), load_file(run / name / MERGED)) <= 3e-5
        assert metrics(run / f"again_{name}") == metrics(run / name)
        assert largest_gap(load_file(run / name / MERGED), load_file(run / f"again_{name}" / MERGED)) == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_frozen_bfloat16_base_keeps_its_type_below_float32_adapters(base, together, mode):
    run = together(mode, "bfloat16")
    for name in lora_runs.RUNS:
        assert {tensor.dtype for tensor in load_file(run / name / MERGED).values()} == {torch.bfloat16}
        adapters = load_file(run / name / "adapter/adapter_model.safetensors")
        assert {tensor.dtype for tensor in adapters.values()} == {torch.float32}
        assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in adapters.values())
        assert metrics(run / f"again_{name}") == metrics(run / name)


@pytest.mark.parametrize("mode", [None, *MODES])
def test_a_checkpoint_holds_adapters_alone_and_is_exported_merged(base, alone, together, mode, tmp_path):
    run = (alone if mode is None else together(mode)) / "rl"
    state = run / "checkpoints/step_6/state"
    whole = load_file(base / "model.safetensors")
    largest = max(tensor.nbytes for tensor in whole.values())
    assert sum(path.stat().st_size for path in state.rglob("*model*") if path.is_file()) < largest
    exported = export(run / "checkpoints/step_6", tmp_path / "exported")
    for folder, other in ((exported, run / "model"), (tmp_path / "exported_adapter", run / "adapter")):
        (found,), (expected,) = (list(map(load_file, each.glob("*.safetensors"))) for each in (folder, other))
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    with pytest.raises(ConfigError, match="exported_adapter' exists"):
        export(run / "checkpoints/step_6", (tmp_path / "exported").rename(tmp_path / "moved").with_name("exported"))


def test_what_a_run_leaves_is_a_model_and_adapters_that_agree(alone):
    """RL stood on the model of SFT: its adapters go over that, and the merged model needs nothing else."""
    merged = AutoModelForCausalLM.from_pretrained(alone / "rl/model", dtype=torch.float32)
    over = AutoModelForCausalLM.from_pretrained(alone / "sft/model", dtype=torch.float32)
    before = own_logprobs(over, SEQUENCES)
    loaded = PeftModel.from_pretrained(over, alone / "rl/adapter")
    torch.testing.assert_close(own_logprobs(loaded, SEQUENCES), own_logprobs(merged, SEQUENCES), rtol=0, atol=1e-5)
    assert (own_logprobs(merged, SEQUENCES) - before).abs().mean() > 1e-4
    record = json.loads((alone / "rl/provenance.json").read_text())
    assert record["lora"] == {"rank": 4, "alpha": 8, "targets": "all-linear"} and record["packages"]["peft"]
    assert "rank 4, alpha 8" in (alone / "rl/model/README.md").read_text()


def test_another_base_than_the_adapters_were_trained_over_is_refused(base, alone, tmp_path):
    weights = alone / "sft" / MERGED
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-1] + b"\0" if kept[-1:] != b"\0" else kept[:-1] + b"\1")
        with pytest.raises(ConfigError, match="is no longer the model that the adapters were trained over"):
            export(alone / "rl/checkpoints/step_6", tmp_path / "exported")
    finally:
        weights.write_bytes(kept)
    assert list(tmp_path.iterdir()) == []


def test_vllm_samples_from_the_merged_weights(alone, tmp_path):
    """After every step the log-probs of what vLLM drew are the trainer's, whose weights are the base and adapters."""
    pytest.importorskip("vllm", reason="vLLM is not installed (launch/setup.sh)")
    _, arguments, _ = lora_runs.RUNS["rl"]
    out = tmp_path / "rl"
    asked = [*arguments, "engine=vllm", "max_model_len=400", "num_steps=3", "save_every=3", "eval_every=0"]
    run = [*asked, f"model.path={alone / 'sft/model'}", f"out={out}"]
    forks.finish(rl.main, (run,), tmp_path / "log", forks.nothing, forks.SPAWN)
    found = rows(out)
    assert len(found) == 3 and all(row["grad_norm"] > 0 for row in found)
    assert max(row["sampling/logp_difference/mean"] for row in found) < 1e-4
    moved = largest_gap(load_file(out / MERGED), load_file(alone / "sft" / MERGED))
    assert moved > 1e-4  # so the engine had other weights to take than it began with
