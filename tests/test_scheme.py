"""The seam for schemes: the scheme of docs/schemes.md, in a folder of its own, trains, builds and is judged."""

import json
from contextlib import nullcontext
from pathlib import Path
from textwrap import dedent

import pytest

from membuilder import expert
from membuilder.bank.store import reading
from membuilder.building import dialogues
from membuilder.building.builder import ask_expert
from membuilder.building.config import BuildConfig
from membuilder.config import load
from membuilder.errors import ConfigError
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.load import load_scheme, scheme_of
from membuilder.schemes.memalpha.config import MemAlphaConfig
from reward.formula import load_formula
from tests import keeper
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, Request, answering
from tests.small_rl import Run, config_of
from tests.test_expert import THREE, custom
from trainer.experience.evaluate import compare_baselines, judge_policy
from trainer.logs.run_log import read_jsonl
from trainer.model.tiny_model import train_tokenizer
from trainer.rl_config import RLConfig
from trainer.sft_config import SFTConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return keeper.write(tmp_path_factory.mktemp("keeper"))


def test_a_scheme_of_ones_own_trains_and_is_judged(folder, tmp_path):
    run = Run(config_of(tmp_path, scheme=str(folder), eval_every=2, advantage_std="batch"))
    losses = [row["sft/loss"] for row in read_jsonl(tmp_path / "sft" / "metrics.jsonl")]
    assert len(losses) == 16 and losses[-1] < losses[0] / 2
    rows = [row for row in run.train() if "reward/mean" in row]
    assert [row["step"] for row in rows] == [0, 1]
    assert all("reward/keeper" in row and "format/keeper" in row and "reward/core" not in row for row in rows)
    assert any(row["grad_norm"] > 0 for row in rows) and 0 <= rows[-1]["eval/accuracy"] <= 1
    systems = compare_baselines(run.builds, run.collector) | {
        "policy": judge_policy(run.builds, run.collector, "policy")
    }
    assert systems["policy"].format_valid > 0.5
    assert systems["all"].recall_at_10 >= systems["rules"].recall_at_10 > systems["empty"].recall_at_10 == 0


def changed(folder: Path, tmp_path: Path, old: str, new: str) -> str:
    assert old in keeper.SCHEME
    (tmp_path / "scheme.py").write_text(keeper.SCHEME.replace(old, new))
    return str(tmp_path)


@pytest.mark.parametrize("roles", ["()", '("keeper", "keeper")', '("Keeper",)', '("a/b",)'])
def test_ill_named_roles_are_refused(folder, tmp_path, roles):
    name = changed(folder, tmp_path, 'roles = ("keeper",)', f"roles = {roles}")
    with pytest.raises(ConfigError, match="role"):
        load_scheme(name, PromptConfig())


def test_what_is_no_scheme_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"'four_agent' is none of four_agents, memalpha, and no folder with"):
        load_scheme("four_agent", PromptConfig())
    (tmp_path / "scheme.py").write_text(dedent("def make(prompts): ..."))
    with pytest.raises(ConfigError, match="defines no function 'make_scheme'"):
        load_scheme(str(tmp_path), PromptConfig())
    with pytest.raises(ConfigError, match=r"has no reward\.py"):
        load_formula(str(tmp_path))


@pytest.mark.parametrize("config", [SFTConfig, RLConfig, BuildConfig])
def test_memalpha_is_a_scheme_with_settings_of_its_own_in_every_configuration(config):
    needed = ["out=o", "model.name=m"] if config is BuildConfig else []
    given = [
        "scheme=memalpha",
        "memalpha.response_format=compact",
        "prompts.chat_template_kwargs.enable_thinking=false",
    ]
    scheme = scheme_of(load(config, None, [*needed, *given]))
    assert (scheme.name, scheme.roles, scheme.config.response_format) == ("memalpha", ("writer",), "compact")
    assert scheme_of(load(config, None, [*needed, "scheme=memalpha"])).config == MemAlphaConfig()
    assert scheme_of(load(config, None, needed)).name == "four_agents"


@pytest.mark.parametrize(
    ("scheme", "given", "problem"),
    [
        (
            "four_agents",
            {"memalpha": MemAlphaConfig(max_turns=2)},
            "memalpha.max_turns without effect under scheme=four",
        ),
        (
            "four_agents",
            {"memalpha": MemAlphaConfig()},
            "memalpha without effect .* set scheme=memalpha or memalpha=null",
        ),
        ("FOLDER", {"memalpha": MemAlphaConfig(view="related")}, "memalpha.view without effect under scheme=.*keeper"),
        (
            "memalpha",
            {"prompts": PromptConfig(entries_shown=3, include_superseded=False)},
            "prompts.entries_shown, prompts.include_superseded without effect under scheme=memalpha.* "
            "prompts.entries_shown=20 prompts.include_superseded=true",
        ),
    ],
)
def test_settings_of_another_scheme_are_refused_by_name(folder, scheme, given, problem):
    settings = {"prompts": PromptConfig()} | given
    with pytest.raises(ConfigError, match=problem):
        load_scheme(str(folder) if scheme == "FOLDER" else scheme, **settings)


def test_limits_are_counted_as_the_model_in_training_counts_unless_a_tokenizer_is_named(tmp_path):
    def by_words(texts):
        return sum(len(text.split()) for text in texts)

    assert load_scheme("memalpha", PromptConfig(), None, by_words).count_tokens is by_words
    train_tokenizer(["a b"], [], 260).save_pretrained(tmp_path)
    named = MemAlphaConfig(tokenizer=str(tmp_path))
    assert load_scheme("memalpha", PromptConfig(), named, by_words).count_tokens is None


def test_a_scheme_without_an_expert_says_what_it_cannot_do(folder, tmp_path):
    scheme = load_scheme(changed(folder, tmp_path, "expert = staticmethod(longest)", "expert = None"), PromptConfig())
    with pytest.raises(ConfigError, match="has no offline expert: name a model"):
        ask_expert(scheme)


# The commands


def asked(request: Request) -> str:
    """The model behind a server keeps the first line."""
    return '{"ready": true}' if "keep:" not in request.body["messages"][-1]["content"] else "#1"


@pytest.fixture
def expert_command(folder, tmp_path, monkeypatch):
    """The expert with the toy scheme on one dialogue of three sessions, with a small embedder."""
    monkeypatch.setattr(dialogues, "embedder_of", lambda options, costs: nullcontext(HashEmbedder()))
    data = custom(tmp_path / "talks.jsonl", THREE)
    base = ["--dataset", "custom", "--dataset-path", str(data), "--output-dir", str(tmp_path / "out")]
    return lambda *flags, scheme=str(folder): expert.main([*base, "--scheme", scheme, *flags])


def test_an_expert_that_is_a_model_asks_through_the_scheme_and_a_store_is_kept(
    expert_command, folder, tmp_path, capsys
):
    with FaultServer(answering(asked)) as server:
        flags = ["--expert-model", "m-1", "--provider", "vllm", "--base-url", server.base_url]
        assert expert_command(*flags) == 0
        assert len(server.requests) == 1 + 3  # the check, and the one role about three sessions
        assert expert_command(*flags, "--expert-model", "m-2") == 2
    sample = tmp_path / "out/custom/d"
    told = {"conv_id": "d", "num_sessions": 3, "scheme": str(folder)}
    assert told.items() <= json.loads((sample / "metadata.json").read_text()).items()
    assert not (sample / "states").exists()
    with reading(sample / "memory.db") as store:
        assert store.settings()["scheme"] == str(folder)
        assert [entry.text.split(": ")[1] for entry in store.bank().entries] == [
            s.turns[0].text for s in THREE.sessions
        ]
        assert [list(each.answers) for each in store.sessions()] == [["keeper"]] * 3
    assert "3 sessions, 3 entries" in capsys.readouterr().out


def test_a_scheme_without_rules_and_a_folder_without_a_scheme_are_refused_by_name(expert_command, tmp_path, capsys):
    without = tmp_path / "without"
    without.mkdir()
    name = changed(tmp_path, without, "expert = staticmethod(longest)", "expert = None")
    assert expert_command("--expert", "rules", scheme=name) == 2
    assert expert_command("--expert", "rules", scheme="nowhere") == 2
    said = capsys.readouterr().err
    assert "scheme 'keeper' has no offline expert: name a model" in said
    assert "scheme: 'nowhere' is none of four_agents, memalpha, and no folder with a scheme.py in it" in said
    assert not list((tmp_path / "out").rglob("memory.db"))
