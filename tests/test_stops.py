"""SIGTERM to a real launcher: every process ends its step, one checkpoint is saved, both end, and the run goes on from
it.
"""

import signal

import pytest

from tests import both_loops
from tests.launchers import await_steps, nodes, rows
from trainer.checkpoint import folders

pytestmark = pytest.mark.slow
STEPS = 60


def test_sigterm_to_the_launcher_saves_before_both_processes_end(tmp_path):
    out = tmp_path / "run"
    run = [*both_loops.SFT, f"max_steps={STEPS}", "save_every=1000", f"out={out}"]
    with nodes("ddp", tmp_path, "trainer.sft", *run) as (node,):
        await_steps(out, lambda: node.launcher.poll() is None, node.log)
        node.launcher.send_signal(signal.SIGTERM)
        assert node.launcher.wait(60) != 0
        said = node.log.read_text()
    done = len(rows(out))
    assert done < STEPS and said.count(f"stopped by SIGTERM after step {done - 1}, which is saved") == 2, said[-3000:]
    assert "SIGKILL" not in said
    assert list(folders.checkpoints(out / "checkpoints"))[-1] == done

    with nodes("ddp", tmp_path, "trainer.sft", *run, "resume=auto") as (node,):
        assert node.launcher.wait(200) == 0, node.log.read_text()[-3000:]
    assert f"resuming from '{out}/checkpoints/step_{done}'" in node.log.read_text()
    assert [row["step"] for row in rows(out)] == list(range(STEPS))
