"""What a run may go on with: what changes no number, what changes rounding or length and is told, what is refused."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from membuilder.errors import ConfigError
from membuilder.settings import difference
from reward.score import RewardConfig, RewardEndpoint
from tests.forks import as_rank, embedder, free_port  # noqa: F401
from tests.lives import checkpoint_names, finish, metrics, refused, same_run, start
from tests.scheme_runs import RL, SFT
from trainer import rl, sft
from trainer.checkpoint.input_files import content_of, contents
from trainer.checkpoint.run_settings import FREE, LENGTH, ROUNDING, check_settings, resolved
from trainer.distributed.process_group import World
from trainer.experience.rollout_cache import Experience, RolloutCache
from trainer.rl_config import RLConfig
from trainer.sft_config import SFTConfig

THEN = resolved(RLConfig()) | {"files": {}, "processes": 1, "wrapper": "none"}


def told(**changed) -> list[str]:
    return check_settings(Path("there"), THEN, THEN | changed)


@pytest.mark.parametrize("key", sorted(FREE))
def test_a_key_of_the_loop_itself_may_change_in_silence(key):
    assert told(**{key: "another"}) == []


def test_what_changes_rounding_or_the_length_is_told():
    (said,) = told(max_tokens=300)
    assert said == "max_tokens=40000 (now 300): the same numbers up to rounding"
    (said,) = told(num_steps=200)
    assert said.startswith("num_steps=100 (now 200): the learning rate follows the schedule of the new length")


@pytest.mark.parametrize("section", ["seed", "optim", "loss", "data", "sampling", "reward", "num_rollouts", "states"])
def test_what_changes_the_numbers_is_refused_with_both_values(section):
    value = THEN[section]
    other = value | {next(iter(value)): "another"} if isinstance(value, dict) else "another"
    with pytest.raises(ConfigError, match=rf"'there' was begun with other settings: {section}.*\(now 'another'\); "
                       "that changes the numbers: give the same settings, or another `out`"):  # fmt: skip
        told(**{section: other})


def test_every_key_that_may_change_exists():
    asking = RewardConfig(judge="llm", answerer=RewardEndpoint(name="a"), grader=RewardEndpoint(name="g"))
    known = difference({}, resolved(RLConfig(reward=asking)) | resolved(SFTConfig()))
    assert known.keys() >= FREE | LENGTH | ROUNDING


def test_another_number_of_processes_goes_on_when_it_is_asked_for_and_whole():
    more = {"processes": 2, "wrapper": "DDP"}
    with pytest.raises(ConfigError, match="processes=1 .now 2., wrapper='none' .*resume_other_processes=true"):
        told(**more)
    said = told(**more, resume_other_processes=True)
    assert len(said) == 2 and said[0].startswith("processes=1 (now 2): the same samples give the same numbers up to")
    for zero2 in ({"processes": 2, "wrapper": "DeepSpeed ZeRO-2"}, {"wrapper": "DeepSpeed ZeRO-2"}):
        with pytest.raises(ConfigError, match="with the same file of configs/accelerate, or another `out`"):
            told(**zero2, resume_other_processes=True)


def test_files_are_known_by_what_they_hold(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_bytes(b"1")
    (tmp_path / "judge.py").write_text("def strict(): ...\ndef mild(): ...\n")
    shutil.copytree(tmp_path / "model", tmp_path / "moved/model")
    shutil.copy(tmp_path / "judge.py", tmp_path / "moved/judge.py")
    (tmp_path / "moved/model/README.md").write_text("A card tells of paths and metrics.")

    def settings(folder: Path, function: str = "strict") -> dict:
        files = {"model": {"path": f"{folder}/model"}, "reward": {"judge": f"{folder}/judge.py:{function}"}}
        return files | {"files": contents(files)}

    then = settings(tmp_path)
    assert check_settings(tmp_path, then, settings(tmp_path / "moved")) == []
    with pytest.raises(ConfigError, match=r"reward.judge='.*judge.py:strict' \(now '.*judge.py:mild'\);"):
        check_settings(tmp_path, then, settings(tmp_path, "mild"))
    (tmp_path / "model/weights").write_bytes(b"2")
    with pytest.raises(ConfigError, match=r"what lies at model.path='sha256 [0-9a-f]{12}' \(now 'sha256"):
        check_settings(tmp_path, then, settings(tmp_path))
    # a checkpoint of before files were known by their content
    before = {key: value for key, value in then.items() if key != "files"}
    assert check_settings(tmp_path, before, settings(tmp_path)) == []
    with pytest.raises(ConfigError, match="model.path="):
        check_settings(tmp_path, before, settings(tmp_path / "moved"))


def test_what_a_journal_holds_is_learned_from_under_settings_that_may_differ(tmp_path):
    RolloutCache(tmp_path, World(), THEN, anew=False).write(0, Experience(scored=[], steered={}))
    assert RolloutCache(tmp_path, World(), THEN | {"max_tokens": 300, "num_steps": 7}, anew=False).read(0) is not None
    with pytest.raises(ConfigError, match="seed=1 .now 2."):
        RolloutCache(tmp_path, World(), THEN | {"seed": 2}, anew=False)


def test_names_are_part_of_a_folders_content(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(b"same")
    assert content_of(tmp_path / "one") != content_of(tmp_path / "two")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A finished SFT run of eight steps."""
    folder = tmp_path_factory.mktemp("done") / "sft"
    finish(sft.main, [*SFT, "max_steps=8", "save_at_end=true"], folder)
    return folder


def test_a_finished_run_says_so(done, tmp_path):
    assert checkpoint_names(done) == ["step_6", "step_8"]
    out = shutil.copytree(done, tmp_path / "run")
    finish(sft.main, [*SFT, "resume=auto", "max_steps=8"], out)
    said = Path(f"{out}.log").read_text()
    assert "nothing left to train: 8 steps are done, and max_steps asks for 8 in all; a larger max_steps" in said
    assert f"saved {out}/model; validation loss" in said and " nan " not in said
    same_run(out, done)


@pytest.mark.slow
def test_a_longer_run_goes_on_from_the_end_of_a_finished_one(done, tmp_path):
    out, again = shutil.copytree(done, tmp_path / "run"), [*SFT, "resume=auto", "save_at_end=true"]
    # after an out-of-memory, longer, and with other keys of the loop
    finish(sft.main, [*again, "max_steps=12", "max_tokens=300", "save_every=2", "keep_last=1"], out)
    said = Path(f"{out}.log").read_text()
    assert "max_tokens=600 (now 300): the same numbers up to rounding" in said and "max_steps=8 (now 12): " in said
    assert [row["step"] for row in metrics(out)] == list(range(12)) and checkpoint_names(out) == ["step_12"]
    assert "optim.lr=0.003 (now 0.001); that changes" in refused(sft.main, [*again, "optim.lr=1e-3"], out)


@pytest.mark.slow
def test_another_place_and_smaller_micro_batches_give_the_same_numbers(done, tmp_path):
    """RL from a model that has moved since, in an `out` that has moved, after an out-of-memory."""
    arguments = [*RL, "num_steps=4", "eval_every=0"]
    finish(rl.main, [*arguments, f"model.path={done}/model"], tmp_path / "whole")
    out = shutil.copytree(tmp_path / "whole", tmp_path / "elsewhere/run")
    shutil.rmtree(out / "checkpoints/step_4")
    moved = shutil.copytree(done / "model", tmp_path / "moved")
    finish(rl.main, [*arguments, f"model.path={moved}", "max_tokens=200", "resume=auto"], out)
    same_up_to_rounding(tmp_path / "whole", out)


def same_up_to_rounding(one: Path, other: Path) -> None:
    for left, right in zip(metrics(one), metrics(other), strict=True):
        assert left.keys() == right.keys()
        # how much is run to learn the same is another matter
        for name in left.keys() - {"num_packed_tokens", "num_repeated_tokens"}:
            assert left[name] == pytest.approx(right[name], abs=1e-4), name


def on_two_processes(arguments: list[str], out: Path) -> None:
    """Under DDP, as a launcher would start it."""
    port = free_port()
    started = [start(sft.main, arguments, out, lambda rank=rank: as_rank(rank, 2, port)) for rank in range(2)]
    for process in started:
        process.join(100)
        assert process.exitcode == 0, Path(f"{out}.log").read_text()[-3000:]


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes_on_request(done, tmp_path):
    """One process hands over to two, and two to one, to the numbers of one."""
    arguments = [*SFT, "max_steps=8", "save_every=2", "keep_last=9"]
    finish(sft.main, arguments, tmp_path / "whole")
    out = shutil.copytree(tmp_path / "whole", tmp_path / "run")
    go_on = [*arguments, "resume=auto", "resume_other_processes=true"]

    for left_at, main in ((2, on_two_processes), (6, partial(finish, sft.main))):
        for step in range(left_at + 2, 10, 2):
            shutil.rmtree(out / f"checkpoints/step_{step}")
        main(go_on, out)
    said = Path(f"{out}.log").read_text()
    assert "processes=1 (now 2): the same samples" in said and "processes=2 (now 1): the same samples" in said
    same_up_to_rounding(tmp_path / "whole", out)
