"""Makes training data out of expert trajectories, and converts between our files and the published ones.

    python -m membuilder.prepare sft --trajectories-dir expert_trajectories/longmemeval_sft --output-file sft.jsonl
    python -m membuilder.prepare sft --trajectories-dir DIR --output-file sft.json --to llama-factory --write-out
    python -m membuilder.prepare rl  --trajectories-dir DIR --output-file rl.parquet
    python -m membuilder.prepare rl  --trajectories-dir DIR --output-file dialogues.jsonl --to dialogues
    python -m membuilder.prepare rl  --input-file memory_rl_train.parquet --from verl --output-file rl.jsonl

`ours` is JSON Lines or Parquet, by the name's ending, for every scheme (membuilder/trajectories/records.py has the
fields); `llama-factory`, `verl` and `verl-flat` hold the four agents alone (membuilder/trajectories/
published_formats.py); `dialogues` is the custom dataset (membuilder/datasets/custom.py) with the written questions,
which `trainer.rl` takes as data.path. What is left out is counted by reason, and nothing is left out silently.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from membuilder.bank.store import reading
from membuilder.command import ArgumentParser, exit_status
from membuilder.datasets.splits import of_the_test_split
from membuilder.errors import ConfigError
from membuilder.files import write_atomic
from membuilder.trajectories.published_formats import read_llama_factory, read_verl, write_llama_factory, write_verl
from membuilder.trajectories.records import (
    PARQUET,
    RLRecord,
    SFTRecord,
    dialogue_line,
    read_question_lines,
    read_records,
    rl_records,
    sft_records,
    write_records,
)
from membuilder.trajectories.trajectory import QA_FILE, STORE_FILE, read_trajectory, sample_folders, unfinished_folders
from membuilder.value_types import PositiveInt, flag_type

OURS, LLAMA_FACTORY, VERL, VERL_FLAT, DIALOGUES = "ours", "llama-factory", "verl", "verl-flat", "dialogues"
SOURCES = {"sft": (OURS, LLAMA_FACTORY), "rl": (OURS, VERL, VERL_FLAT)}
TARGETS = SOURCES | {"rl": (OURS, VERL, VERL_FLAT, DIALOGUES)}
RECORDS = {"sft": SFTRecord, "rl": RLRecord}
ENDINGS = {OURS: (".jsonl", PARQUET), LLAMA_FACTORY: (".json",), DIALOGUES: (".jsonl",)}
ENDINGS |= {VERL: (PARQUET,), VERL_FLAT: (PARQUET,)}


def prepare(given: argparse.Namespace) -> tuple[list[Any], Counter[str]]:
    """Write the records (pairs, sessions or dialogues); return them, and why others were left out."""
    if given.trajectories_dir is not None:
        records, left_out = _from_trajectories(given)
        if given.stage == "rl" and given.to != DIALOGUES:
            records.sort(key=attrgetter("dialogue", "session_index"))
    elif given.source == OURS:
        records, left_out = read_records(given.input_file, RECORDS[given.stage]), Counter()
    else:
        records, left_out = (read_llama_factory if given.stage == "sft" else read_verl)(given.input_file)
    if given.stage == "sft":
        short = [record for record in records if record.estimated_tokens <= given.max_length]
        left_out["longer_than_max_length"] = len(records) - len(short)
        records = short
    left_out = +left_out
    if not records:
        raise ConfigError(f"nothing is left to train on; left out: {dict(left_out) or 'nothing'}")
    if given.to == OURS:
        write_records(given.output_file, records, RECORDS[given.stage])
    elif given.to == LLAMA_FACTORY:
        write_llama_factory(given.output_file, records)
    elif given.to == DIALOGUES:
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in records]
        write_atomic(given.output_file, "".join(lines))
    else:
        write_verl(given.output_file, records, flat=given.to == VERL_FLAT)
    return records, left_out


def _from_trajectories(given: argparse.Namespace) -> tuple[list[Any], Counter[str]]:
    records, left_out = [], Counter(samples_not_whole=len(unfinished_folders(given.trajectories_dir)))
    for folder in sample_folders(given.trajectories_dir):
        with reading(folder / STORE_FILE) as store:
            trajectory = read_trajectory(store)
        if given.stage == "sft":
            found, without = sft_records(trajectory, given.write_out)
        elif given.to == DIALOGUES:
            found, without = dialogue_line(trajectory, read_question_lines(folder / QA_FILE, trajectory))
        else:
            name = folder.relative_to(given.trajectories_dir).as_posix()
            found, without = rl_records(trajectory, read_question_lines(folder / QA_FILE, trajectory), name)
        records += found
        left_out += without
    return records, left_out


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    return exit_status("membuilder.prepare", lambda: _write(given))


def _write(given: argparse.Namespace) -> int:
    _check(given)
    records, left_out = prepare(given)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "none"
    print(f"{given.output_file}: {len(records)} records; left out: {reasons}")
    if given.to == LLAMA_FACTORY:
        name = given.output_file.name
        print(f'for dataset_info.json: "{given.output_file.stem}": {{"file_name": "{name}"}}')
    names = (each["id"] if isinstance(each, dict) else each.dialogue for each in records)
    if tested := of_the_test_split(names):
        problem = f"{len(tested)} dialogues are of LongMemEval's published test split, such as {tested[0]}"
        remedy = "trainer.sft and trainer.rl refuse them (data.split, data.allow_test_ids); train nothing else on them"
        print(f"membuilder.prepare: {given.output_file}: {problem}: {remedy}", file=sys.stderr)
    return 0


def _check(given: argparse.Namespace) -> None:
    if given.to == DIALOGUES and given.trajectories_dir is None:
        raise ConfigError("--to dialogues needs --trajectories-dir: the sessions without questions stand there only")
    if given.write_out and given.trajectories_dir is None:
        raise ConfigError("--write-out needs --trajectories-dir: the quoted turns stand there")
    for shape, file in ((given.to, given.output_file), (given.source, given.input_file)):
        if file is not None and file.suffix not in ENDINGS[shape]:
            raise ConfigError(f"{file}: the shape {shape} is a file that ends in {' or '.join(ENDINGS[shape])}")


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m membuilder.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    for stage, sources in SOURCES.items():
        command = stages.add_parser(stage, help=f"records for {stage.upper()}")
        source = command.add_mutually_exclusive_group(required=True)
        source.add_argument("--trajectories-dir", "--trajectory-dir", type=Path, help="what membuilder.expert wrote")
        source.add_argument("--input-file", type=Path, help="a file to convert, of the shape --from")
        command.add_argument("--from", dest="source", default=OURS, choices=sources)
        command.add_argument("--output-file", type=Path, required=True)
        command.add_argument("--to", default=OURS, choices=TARGETS[stage])
        command.set_defaults(max_length=1, write_out=False)
        if stage == "sft":
            text = "estimated tokens (characters / 4); default %(default)s"
            command.add_argument("--max-length", type=flag_type(PositiveInt), default=20000, help=text)
            command.add_argument(
                "--write-out", action="store_true", help="quoted turns as text, for programs that know no `quote`"
            )
    return parser


if __name__ == "__main__":
    sys.exit(main())
