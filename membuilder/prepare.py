"""Makes training data out of expert trajectories, and converts between our files and the published ones.

    python -m membuilder.prepare sft --trajectories-dir expert_trajectories/longmemeval_sft --output-file sft.jsonl
    python -m membuilder.prepare sft --trajectories-dir DIR --output-file sft.json --to llama-factory --write-out
    python -m membuilder.prepare rl  --trajectories-dir DIR --output-file rl.parquet
    python -m membuilder.prepare rl  --trajectories-dir DIR --output-file dialogues.jsonl --to dialogues
    python -m membuilder.prepare rl  --input-file memory_rl_train.parquet --from verl --output-file rl.jsonl

`ours` is JSON Lines or Parquet, by the name's ending (membuilder/trajectories/records.py has the fields);
`llama-factory`, `verl` and `verl-flat` are in membuilder/trajectories/published_formats.py; `dialogues` is the custom
dataset (membuilder/datasets/custom.py) with the written questions, which `trainer.rl` takes as data.path. What is left
out is counted by reason, and nothing is left out silently.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from membuilder.bank.store import reading
from membuilder.datasets.files import FILE
from membuilder.errors import ConfigError, DataError, MemBuilderError
from membuilder.files import write_atomic
from membuilder.trajectories.published_formats import read_llama_factory, read_verl, write_llama_factory, write_verl
from membuilder.trajectories.records import (
    PARQUET,
    QuestionLine,
    RLRecord,
    SFTRecord,
    dialogue_line,
    read_question_lines,
    read_records,
    rl_records,
    sft_records,
    write_records,
)
from membuilder.trajectories.trajectory import (
    QA_FILE,
    STORE_FILE,
    Trajectory,
    read_trajectory,
    sample_folders,
)

OURS, LLAMA_FACTORY, VERL, VERL_FLAT, DIALOGUES = "ours", "llama-factory", "verl", "verl-flat", "dialogues"
SOURCES = {"sft": (OURS, LLAMA_FACTORY), "rl": (OURS, VERL, VERL_FLAT)}
TARGETS = SOURCES | {"rl": (OURS, VERL, VERL_FLAT, DIALOGUES)}
ENDINGS = {
    OURS: (".jsonl", PARQUET),
    LLAMA_FACTORY: (".json",),
    VERL: (PARQUET,),
    VERL_FLAT: (PARQUET,),
    DIALOGUES: (".jsonl",),
}


def prepare_sft(given: argparse.Namespace) -> tuple[int, Counter[str]]:
    """Number of records written, and why others were not."""
    if given.trajectories_dir is not None:
        records, left_out = [], Counter()
        for folder in sample_folders(given.trajectories_dir):
            found, failed = sft_records(_trajectory(folder), given.write_out)
            records += found
            left_out += failed
    elif given.source == LLAMA_FACTORY:
        records, left_out = read_llama_factory(given.input_file)
    else:
        records, left_out = read_records(given.input_file, SFTRecord), Counter()
    short = [record for record in records if record.estimated_tokens <= given.max_length]
    left_out["longer_than_max_length"] = len(records) - len(short)
    _refuse_nothing(short, left_out)
    if given.to == LLAMA_FACTORY:
        write_llama_factory(given.output_file, short)
    else:
        write_records(given.output_file, short, SFTRecord)
    return len(short), +left_out


def prepare_rl(given: argparse.Namespace) -> tuple[int, Counter[str]]:
    """Number of records (sessions, or dialogues) written, and why others were not."""
    if given.to == DIALOGUES:
        return _write_dialogues(given)
    records: list[RLRecord] = []
    left_out: Counter[str] = Counter()
    if given.trajectories_dir is not None:
        for folder in sample_folders(given.trajectories_dir):
            found, without = _with_questions(folder, given.trajectories_dir)
            records += found
            left_out += without
        records.sort(key=lambda record: (record.dialogue, record.session_index))
    elif given.source == OURS:
        records = read_records(given.input_file, RLRecord)
    else:
        records, left_out = read_verl(given.input_file)
    _refuse_nothing(records, left_out)
    if given.to == OURS:
        write_records(given.output_file, records, RLRecord)
    else:
        write_verl(given.output_file, records, flat=given.to == VERL_FLAT)
    return len(records), left_out


def _write_dialogues(given: argparse.Namespace) -> tuple[int, Counter[str]]:
    lines, left_out = [], Counter()
    for folder in sample_folders(given.trajectories_dir):
        trajectory = _trajectory(folder)
        line, num_unplaced = dialogue_line(trajectory, _question_lines(folder, trajectory))
        lines.append(line)
        left_out["question_without_turns"] += num_unplaced
    write_atomic(given.output_file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return len(lines), +left_out


def _trajectory(folder: Path) -> Trajectory:
    with reading(folder / STORE_FILE) as store:
        return read_trajectory(store)


def _with_questions(folder: Path, root: Path) -> tuple[list[RLRecord], Counter[str]]:
    trajectory = _trajectory(folder)
    return rl_records(trajectory, _question_lines(folder, trajectory), folder.relative_to(root).as_posix())


def _question_lines(folder: Path, trajectory: Trajectory) -> list[QuestionLine]:
    path = folder / QA_FILE
    if not path.is_file():
        problem = "has no questions, so no reward; write them with `python -m membuilder.qa`"
        raise DataError(path, FILE, "path", problem)
    return read_question_lines(path, trajectory)


def _refuse_nothing(records: Sequence[object], left_out: Counter[str]) -> None:
    if not records:
        raise ConfigError(f"nothing is left to train on; left out: {dict(+left_out) or 'nothing'}")


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    try:
        _check(given)
        num_records, left_out = prepare_sft(given) if given.stage == "sft" else prepare_rl(given)
    except MemBuilderError as error:
        print(f"membuilder.prepare: {error}", file=sys.stderr)
        return 2
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "none"
    print(f"{given.output_file}: {num_records} records; left out: {reasons}")
    if given.to == LLAMA_FACTORY:
        name = given.output_file.name
        print(f'for dataset_info.json: "{given.output_file.stem}": {{"file_name": "{name}"}}')
    return 0


def _check(given: argparse.Namespace) -> None:
    shapes = [given.to] if given.trajectories_dir else [given.to, given.source]
    files = [given.output_file] if given.trajectories_dir else [given.output_file, given.input_file]
    if given.to == DIALOGUES and given.trajectories_dir is None:
        raise ConfigError("--to dialogues needs --trajectories-dir: the sessions without questions stand there only")
    if given.max_length < 1:
        raise ConfigError("--max-length must be at least 1")
    if given.write_out and given.trajectories_dir is None:
        raise ConfigError("--write-out needs --trajectories-dir: the quoted turns stand there")
    for shape, file in zip(shapes, files, strict=True):
        if file.suffix not in ENDINGS[shape]:
            raise ConfigError(f"{file}: the shape {shape} is a file that ends in {' or '.join(ENDINGS[shape])}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
            command.add_argument(
                "--max-length", type=int, default=20000, help="estimated tokens (characters / 4); default %(default)s"
            )
            command.add_argument(
                "--write-out", action="store_true", help="quoted turns as text, for programs that know no `quote`"
            )
    return parser


if __name__ == "__main__":
    sys.exit(main())
