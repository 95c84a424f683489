"""Configuration files and overrides: what is accepted, what is refused, and in which words."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

import pytest

from membuilder.config import describe, dump, load, parse_args
from membuilder.errors import ConfigError
from membuilder.value_types import type_name


class Kind(StrEnum):
    SMALL = "small"
    LARGE = "large"


@dataclass(frozen=True, kw_only=True)
class LengthConfig:
    cap: float = 1.3
    """Ratio to the expert from which
    the penalty is 1."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    length: LengthConfig = field(default_factory=LengthConfig)
    weights: dict[str, float] = field(default_factory=lambda: {"core": 1.0})
    alpha: float = 4.0

    def __post_init__(self):
        if self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    model: str
    seed: int = 0
    kind: Kind = Kind.SMALL
    mode: Literal["on", "off"] = "off"
    verbose: bool = False
    limit: int | None = None
    folder: Path = Path("runs")
    layers: list[int] = field(default_factory=list)
    betas: tuple[float, ...] = (0.9, 0.95)
    reward: RewardConfig = field(default_factory=RewardConfig)
    judge: LengthConfig | None = None


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(*overrides: str, path: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(RunConfig, path, ["model=tiny", *overrides])
    return str(caught.value)


def test_file_then_overrides_win_over_defaults(tmp_path):
    path = write(tmp_path, "model: tiny\nseed: 3\nkind: large\nreward:\n  alpha: 2\n  length: {cap: 1e-1}\n")
    config = load(RunConfig, path, ["seed=5", "limit=7", "layers=[1,2]"])
    assert config == RunConfig(
        model="tiny",
        seed=5,
        kind=Kind.LARGE,
        limit=7,
        layers=[1, 2],
        reward=RewardConfig(alpha=2.0, length=LengthConfig(cap=0.1)),
    )
    assert isinstance(config.reward.length, LengthConfig) and isinstance(config.layers, list)


def test_optional_section_and_dict_entry():
    config = load(RunConfig, None, ["model=m", "judge.cap=2", "reward.weights.semantic=0.5"])
    assert config.judge == LengthConfig(cap=2.0)
    assert config.reward.weights == {"core": 1.0, "semantic": 0.5}
    assert load(RunConfig, None, ["model=m", "judge.cap=2", "judge=null"]).judge is None


def test_references_between_keys_are_resolved():
    assert load(RunConfig, None, ["model=m", "seed=4", "limit=${seed}"]).limit == 4
    assert "limit" in refusal("limit=${nowhere}")


def test_unknown_key_names_source_and_nearest_key(tmp_path):
    path = write(tmp_path, "reward:\n  lenght:\n    cap: 1\n")
    assert refusal(path=path) == f"{path}: unknown key 'reward.lenght'. Did you mean 'reward.length'?"
    assert refusal("reward.length.cpa=1") == (
        "command line: unknown key 'reward.length.cpa'. Did you mean 'reward.length.cap'?"
    )
    assert "Did you mean 'reward.alpha'?" in refusal("alpha=2")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=x", "command line: key 'seed': 'x' does not fit; expected int"),
        ("seed=1.5", "command line: key 'seed': 1.5 does not fit; expected int"),
        ("seed=true", "command line: key 'seed': True does not fit; expected int"),
        ("seed=", "command line: key 'seed': None does not fit; expected int"),
        ("verbose=3", "command line: key 'verbose': 3 does not fit; expected bool"),
        ("limit=x", "command line: key 'limit': 'x' does not fit; expected int | None"),
        ("kind=huge", "command line: key 'kind': 'huge' does not fit; expected one of small, large"),
        ("mode=maybe", "command line: key 'mode': 'maybe' does not fit; expected one of on, off"),
        ("layers=3", "command line: key 'layers': 3 does not fit; expected list[int]"),
        ("layers=[a]", "command line: key 'layers': ['a'] does not fit; expected list[int]"),
        ("reward=3", "command line: key 'reward': 3 does not fit; expected a section of keys"),
        ("reward.weights.core=x", "command line: key 'reward.weights': {'core': 'x'} does not fit; expected dict["),
    ],
)
def test_ill_typed_value_names_key_value_and_type(override, message):
    assert refusal(override).startswith(message)


def test_failed_check_of_a_section_is_named():
    assert refusal("reward.alpha=0.5") == "section 'reward': alpha is 0.5; it must be at least 1"


def test_required_key_without_value():
    with pytest.raises(ConfigError, match="key 'model' has no value: set it in the file, or as model=..."):
        load(RunConfig, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("- 1\n", "expected 'key: value' lines, found a list"),
        ("hello\n", "expected 'key: value' lines, found a str"),
        ("seed: [1\n", "not valid YAML"),
        ("seed: 1\nseed: 2\n", "found duplicate key seed"),
    ],
)
def test_bad_file(tmp_path, text, message):
    path = write(tmp_path, text)
    assert message in refusal(path=path) and path in refusal(path=path)


def test_missing_and_undecodable_file(tmp_path):
    assert refusal(path="nowhere.yaml") == "nowhere.yaml: no such configuration file"
    (tmp_path / "latin.yaml").write_bytes(b"model: \xff\n")
    assert "not valid YAML" in refusal(path=str(tmp_path / "latin.yaml"))


@pytest.mark.parametrize("override", ["seed", "=3", "--seed=3", "++seed=3"])
def test_malformed_override(override):
    assert "is not an override; write key=value" in refusal(override)


def test_malformed_override_value():
    assert "the value '[1,' is not valid YAML" in refusal("layers=[1,")


def test_dump_reads_back_to_an_equal_config(tmp_path):
    config = load(RunConfig, None, ["model=m", "kind=large", "judge.cap=2", "folder=a/b", "betas=[0.5]", "seed=12"])
    assert "kind: large" in dump(config)
    assert load(RunConfig, write(tmp_path, dump(config))) == config


def test_help_lists_every_key_with_type_default_and_text():
    text = describe(RunConfig)
    assert "  model: str = (required)\n" in text
    assert "  kind: one of small, large = small\n" in text
    assert "  reward.length.cap: float = 1.3\n      Ratio to the expert from which the penalty is 1." in text
    assert "  judge.cap: float = unset\n" in text
    assert type_name(int | None) == "int | None"


def test_parse_args_takes_file_and_overrides_in_any_order(tmp_path):
    path = write(tmp_path, "model: m\nseed: 1\n")
    config, _ = parse_args(RunConfig, ["seed=2", "--config", path, "limit=3"], "test")
    assert (config.model, config.seed, config.limit) == ("m", 2, 3)


def test_parse_args_ends_the_program_with_the_message(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(RunConfig, ["sed=1"], "test")
    assert caught.value.code == 2
    assert "unknown key 'sed'. Did you mean 'seed'?" in capsys.readouterr().err
