"""The published config of memalpha whole, SFT and RL, killed and not: its answer format, reader, judges, baseline, loss
and data, which no other test has together (tests/hermes_runs.py).
"""

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from tests.fault_server import FaultServer
from tests.forks import embedder  # noqa: F401
from tests.hermes_runs import commands, make_model, models, speaks, write_data
from tests.lives import checkpoint_names, dies_at, finish, killed, metrics, same_run
from trainer import rl, sft
from trainer.experience import rollout_cache

pytestmark = pytest.mark.slow


class Case(NamedTuple):
    settings: tuple[str, ...] = ()
    response_format: str = "hermes"
    special_tags: bool = False


THINKS = ("prompts.chat_template_kwargs={enable_thinking: true}", "sampling.thinking_budget=40")
CASES = {
    "published": Case(),
    "two turns": Case(("memalpha.max_turns=2",)),
    "two turns of thinking": Case(("memalpha.max_turns=2", *THINKS)),
    "marks": Case(("memalpha.response_format=marks",), "marks"),
    "special tags": Case(THINKS, special_tags=True),
}


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "completions.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", CASES)
def test_a_run_in_the_published_format_learns_and_goes_on_after_a_kill(tmp_path, name):
    case, base, data = CASES[name], tmp_path / "base", write_data(tmp_path / "data")
    make_model(base, special_tags=case.special_tags)
    says = speaks(base, case.response_format)
    with FaultServer(models) as server:
        for_sft, for_rl = commands(base, data, server.base_url, *case.settings)
        finish(sft.main, for_sft, tmp_path / "sft")
        for_rl = [*for_rl, f"model.path={tmp_path}/sft/model"]
        finish(rl.main, for_rl, tmp_path / "whole", says)

        def dies_in_the_second_step() -> None:
            says()
            dies_at(rollout_cache, "write_atomic", 3)()

        killed(rl.main, for_rl, tmp_path / "run", dies_in_the_second_step)
        assert checkpoint_names(tmp_path / "run") == ["step_1"]
        finish(rl.main, [*for_rl, "resume=auto"], tmp_path / "run", says)
    same_run(tmp_path / "run", tmp_path / "whole")
    check_sft(tmp_path / "sft")
    check_rl(tmp_path / "whole", tmp_path / "sft", case)


def check_sft(run: Path) -> None:
    losses = [row["sft/loss"] for row in metrics(run)]
    assert len(losses) == 4 and losses[-1] < losses[0]


def check_rl(run: Path, start: Path, case: Case) -> None:
    steps, rows = metrics(run), rows_of(run)
    assert len(steps) == 2 and all(step["grad_norm"] > 0 for step in steps)
    for part in ("r1", "r2", "r3", "r4"):
        least = float("-inf") if part == "r3" else 0  # a memory of two turns is longer than its short chunk
        assert any(least < step[f"{part}/writer"] < 1 for step in steps), part
        assert all(f"{part}/squad" in step for step in steps)
    assert steps[0]["llm/validator/calls"] > 0 and steps[0]["llm/answerer/calls"] > 0 and "eval/accuracy" in steps[1]
    outcomes = Counter((call["name"], call["outcome"]) for row in rows for call in row.get("calls", ()))
    assert outcomes["memory_insert", "ran"] > 0  # of the first rollouts alone; that others fail is told by r2
    assert {outcome for _, outcome in outcomes} <= {"ran", "duplicate", "unknown_id"}
    if "memalpha.max_turns=2" in case.settings:
        assert outcomes["search_memory", "ran"] > 0 and any(row.get("later_completions") for row in rows)
    mark = "✿FUNCTION✿" if case.response_format == "marks" else "<tool_call>"
    assert all(mark in row["completion"] for row in rows if row.get("calls"))
    assert any("now the answer" in row["completion"] for row in rows) == (THINKS[1] in case.settings)
    before, after = (load_file(each / "model" / "model.safetensors") for each in (start, run))
    assert any(not torch.equal(before[each], after[each]) for each in before)
