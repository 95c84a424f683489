"""The pages of docs/: links and commands exist, pictures show the numbers of the result files, the walkthrough runs."""

import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import fields
from functools import cache
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest
from transformers import Qwen3Config

from membuilder.building.config import BuildConfig
from membuilder.config import known_keys, load
from membuilder.datasets.load import load as load_dialogues
from membuilder.datasets.selection import DATA_FOLDER
from membuilder.datasets.sources import DATASETS
from tests.benchmarks.memalpha_real import table_row
from tests.fault_server import FaultServer, answering
from tests.patience import HANGS
from tests.test_dry_run import QWEN3_4B
from tests.walkthrough import BLOCK, PAGE, SMALLER, Walk, blocks, hosted_model, is_shown
from trainer.rl_config import RLConfig
from trainer.sft_config import SFTConfig

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PICTURES = DOCS / "pictures"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
MAX_PICTURE_BYTES = 200_000
COMMAND = re.compile(r"^ *(?:[A-Z_]+=\S+ +)*(?:python -m |\./)?((?:membuilder|trainer|launch/).*)$", re.MULTILINE)
CONFIGS = {
    "trainer.sft": SFTConfig,
    "trainer.rl": RLConfig,
    "membuilder.build": BuildConfig,
    "launch/sft.sh": SFTConfig,
    "launch/rl.sh": RLConfig,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}, link


def by_loop(told: str) -> dict[type, str]:
    """What a cell of the table says of each loop: "SFT 0, RL 1 (constant)" or one value for both."""
    both = re.match(r"SFT (\S+), RL (\S+)", told)
    sft, rl = both.groups() if both else (told.split(":")[0],) * 2
    return {SFTConfig: sft.strip("`"), RLConfig: rl.strip("`")}


def test_the_published_configs_have_the_published_values_and_the_page_says_how_the_defaults_differ():
    table = (DOCS / "departures.md").read_text(encoding="utf-8").split("\n## ")[1]
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| (.*?) \|", table, re.MULTILINE)
    compared = 0
    for kind, name in ((SFTConfig, "sft"), (RLConfig, "rl")):
        paths = sorted((ROOT / "configs").glob(f"{name}_qwen3_4b*.yaml"))
        assert len(paths) == 3
        for key, published, default in rows:
            if key.split(".")[0] not in {each.name for each in fields(kind)}:
                continue  # a key of RL alone
            kinds = {attrgetter(key)(each) for each in (load(kind, path, []) for path in paths)}
            for found, told in (({attrgetter(key)(kind())}, default), (kinds, published)):
                (value,) = found
                assert value == (
                    by_loop(told)[kind] == "true" if isinstance(value, bool) else type(value)(by_loop(told)[kind])
                )
                compared += 1
    assert compared == 2 * (6 + 4)


def test_the_readme_links_every_page():
    for page in DOCS.glob("*.md"):
        assert f"(docs/{page.name})" in PAGES[0].read_text(encoding="utf-8"), page.name


# Commands


def commands() -> list[tuple[str, list[str]]]:
    """(program, arguments) of every command line in the pages; a program is a module or a file of launch/."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in COMMAND.findall(text):
            program, *arguments = shlex.split(line, comments=True)
            if re.fullmatch(r"(membuilder|trainer)\.\w+|launch/\w+\.sh", program):
                found.append((program, arguments))
    return found


@cache
def help_of(program: str, command: str | None) -> str:
    """What `--help` prints, of the program or of one of its commands."""
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        import_module(program).main([*([] if command is None else [command]), "--help"])
    return printed.getvalue()


SUBCOMMANDS = ("--dry-run", "sft", "rl", "fetch", "build-memalpha", "leaks", "compare")


def test_every_command_line_is_one_that_its_program_takes():
    seen = 0
    for program, arguments in commands():
        if program.startswith("launch/"):
            assert os.access(ROOT / program, os.X_OK), program
        else:
            first = arguments[0] if arguments else None
            text = help_of(program, first if first in SUBCOMMANDS else None)
            for flag in (each for each in arguments if each.startswith("--") and each != "--dry-run"):
                assert re.search(rf"{re.escape(flag)}\b", text), f"{program} {flag}"
                seen += 1
        if program in CONFIGS:
            for key in (each.partition("=")[0] for each in arguments if re.match(r"[\w.]+=", each)):
                assert key in known_keys(CONFIGS[program]), f"{program} {key}"
                seen += 1
    assert seen > 60


@pytest.fixture
def hub(tmp_path) -> Path:
    """A Hugging Face cache with the base model's config.json, and no weights."""
    folder = tmp_path / "hub/models--Qwen--Qwen3-4B-Instruct-2507"
    snapshot = folder / "snapshots" / ("0" * 40)
    Qwen3Config(**QWEN3_4B).save_pretrained(snapshot)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0" * 40)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["first", "lora"])
def test_the_gpu_commands_run_as_written_without_weights_or_gpu(hub, number):
    page = (DOCS / "training.md").read_text(encoding="utf-8")
    blocks = [match["command"] for match in BLOCK.finditer(page) if "--dry-run" in match["command"]]
    assert len(blocks) == 2 and ("lora" in blocks[1])
    block = blocks[number]
    first = next(line.strip() for line in blocks[0].splitlines())
    assert first in PAGES[0].read_text(encoding="utf-8")  # README's is the same
    environment = os.environ | {
        "HF_HOME": str(hub),
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-euc", block], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runs = block.count("--dry-run")
    assert done.stdout.count("GiB on each GPU") == runs and done.stdout.count("GiB to spare") == runs


def test_fetched_files_lie_where_the_configs_look_for_them():
    place = f"{DATA_FOLDER}/{DATASETS['longmemeval'].place}"
    configs = sorted((ROOT / "configs").glob("[rs]*_qwen3_4b*.yaml"))  # not memalpha's, whose data is built
    assert len(configs) == 6
    for path in configs:
        assert load(SFTConfig if path.name.startswith("sft") else RLConfig, path).data.path == place
    formats = (DOCS / "data-formats.md").read_text(encoding="utf-8")
    for name, dataset in DATASETS.items():
        row = next(line for line in formats.splitlines() if line.startswith("| `") and f"`{name}`" in line)
        assert f"`{DATA_FOLDER}/{dataset.place}" in row and dataset.license in row


def test_the_dialogue_of_the_data_formats_page_loads(tmp_path):
    page = (DOCS / "data-formats.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (tmp_path / "talk.jsonl").write_text(json.dumps(json.loads(shown)) + "\n", encoding="utf-8")
    (dialogue,) = load_dialogues(tmp_path / "talk.jsonl")
    assert dialogue.speakers == ("Ann", "Bob") and dialogue.questions[0].evidence == ("t1",)


# Pictures


def test_pictures_show_the_numbers_of_the_result_files():
    script = runpy.run_path(str(PICTURES / "make.py"))
    drawn = {"results": "results", "learning_curve": "curve", "pretrained_curve": "pretrained"}
    for name, numbers in ((name, script[f"{of}_numbers"]()) for name, of in drawn.items()):
        assert json.loads((PICTURES / f"{name}.json").read_text(encoding="utf-8")) == numbers, name
    readme = PAGES[0].read_text(encoding="utf-8")
    (alt,) = re.findall(r"!\[([^\]]*)\]\(docs/pictures/results.png\)", readme)
    charts = script["results_numbers"]()
    for text, chart in zip(alt.split(". "), charts, strict=True):
        for system, word in {"adrpo": "ADRPO", "rules": "rules", "sft": "SFT"}.items():
            assert f"{word} {charts[chart][system][0]:.3f}" in text


def test_the_learning_curve_is_that_of_the_run_it_names():
    """Its start stands in the result file as prose."""
    script = runpy.run_path(str(PICTURES / "make.py"))
    numbers, told = script["curve_numbers"](), script["read_result"]("development")["reward_per_window"]["what"]
    (accuracy, *_), (memory, *_), rules = numbers["accuracy"], numbers["memory_tokens"], numbers["rules"]
    assert f"sft {accuracy} at {memory} tokens, rules {rules[0]} at {rules[1]}" in told


def test_the_table_of_the_memory_server_is_that_of_its_result_file():
    found = json.loads((ROOT / "tests/benchmarks/results/server.json").read_text(encoding="utf-8"))
    page = (DOCS / "memory-server.md").read_text(encoding="utf-8")
    for scenario in found.values():
        each, most = scenario["result"], scenario["highest_rate_that_holds"]
        assert each["failures"] == each["unanswered"] == 0
        seen = each["search"]
        times = f"| {seen['p50_ms']:.0f} ms | {seen['p95_ms']:.0f} ms | {each['resident_mb']} MB |"
        assert f"{times} {most:,.0f} a second |" in page


def test_the_table_of_real_data_under_memalpha_is_that_of_its_result_file():
    found = json.loads((ROOT / "tests/benchmarks/results/memalpha_real.json").read_text(encoding="utf-8"))
    page = (DOCS / "memalpha.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `\w+` \| 0\.\d\d .*$", page, re.MULTILINE)
    assert rows == [table_row(name, each) for name, each in found.items()]


def test_what_a_million_weights_reach_is_that_of_the_result_file():
    page = " ".join((DOCS / "memalpha.md").read_text(encoding="utf-8").split())
    report = json.loads((ROOT / "tests/benchmarks/results/memalpha_million.json").read_text(encoding="utf-8"))
    before, after = report["mean"]["sft"], report["mean"]["rl"]
    shown = f"{before['r1']:.3f} after SFT and {after['r1']:.3f} after RL with {after['memory_over_sft']:.2f} times"
    assert f"{shown} the memory, least gain {100 * after['least_over_sft']:.1f} points (three seeds" in page
    assert len(report["seeds"]) == 3 and all(setting in page for setting in report["overrides"])


def test_the_table_of_memalpha_shows_its_result_file():
    page = (DOCS / "memalpha.md").read_text(encoding="utf-8")
    report = json.loads((ROOT / "tests/benchmarks/results/memalpha.json").read_text(encoding="utf-8"))
    mean, compared = report["mean"], [row for row in report["mean"] if row.startswith(("credit", "view"))]
    named = {"random": "random lines", "rules": "the expert", "sft": "SFT", "rl": "RL, 60 steps", "all": "every line"}
    for name in (*named, *compared):
        row = mean[name]
        figures = f"{row['r1']:.3f} | {row['r1_changed']:.3f} | {row['memory_tokens']:.0f} |"
        assert f"| {named.get(name, name)} | {figures}" in page, (name, figures)
    assert "None is above it, in no seed" in page
    assert all(rows["rl"]["r1"] > rows[name]["r1"] for rows in report["seeds"].values() for name in compared)
    assert f"{100 * mean['rl']['over_sft']:.1f} points" in page
    assert f"at least {100 * mean['rl']['least_over_sft']:.1f}" in page
    sft, learned = mean["sft"], mean["rl"]
    told = f"SFT {sft['r1']:.3f}, RL {learned['r1']:.3f} at {learned['memory_over_sft']:.2f} times the memory"
    assert told in PAGES[0].read_text(encoding="utf-8")
    results = (DOCS / "results.md").read_text(encoding="utf-8")
    assert f"+{100 * learned['over_sft']:.1f} at {learned['memory_over_sft']:.2f}x | `memalpha.json` |" in results
    squad = json.loads((ROOT / "tests/benchmarks/results/memalpha_real.json").read_text())["squad"]["rl_over_sft"]
    points = [100 * squad[name] for name in ("difference", "low", "high")]
    told = "{:+.1f} ({:+.1f} to {:+.1f}) at {:.2f}x".format(*points, squad["memory_over_sft"])
    assert f"{told} | `memalpha_real.json` |" in results


def test_pictures_are_small():
    pictures = sorted(PICTURES.glob("*.png"))
    assert [path.stem for path in pictures] == ["inspect", "learning_curve", "pipeline", "pretrained_curve", "results"]
    for path in pictures:
        assert 10_000 < path.stat().st_size < MAX_PICTURE_BYTES, path.name


# The walkthrough


def test_what_the_walkthrough_is_run_with_stands_on_its_page():
    page = PAGE.read_text(encoding="utf-8")
    commands_of_page = "".join(block.command for block in blocks())
    assert len(re.findall("^```bash$", page, re.MULTILINE)) == len(blocks())
    for text, smaller in SMALLER.items():
        assert text in commands_of_page and f"`{smaller.strip()}`" in page, text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="the page waits for its server with curl")
def test_every_block_of_the_walkthrough_runs_and_prints_what_is_shown(tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed (launch/setup.sh)")
    with FaultServer(answering(hosted_model)) as server:
        walk = Walk(tmp_path, server.base_url)
        try:
            for block in blocks():
                printed = walk.run(block)
                assert block.shown or "cat >" in block.command, f"the page shows nothing under\n{block.command}"
                for line in block.shown.splitlines():
                    assert is_shown(line, printed), f"{line!r} is not in\n{printed}"
        finally:
            walk.close()


def test_a_line_that_was_not_printed_is_not_shown():
    printed = "saved walk/base/model; validation loss 1.214 nats per token"
    assert is_shown("saved  walk/base/model; validation loss 0.98 ...", printed)
    assert not is_shown("saved walk/other/model", printed) and not is_shown("validation loss: 1.214", printed)
