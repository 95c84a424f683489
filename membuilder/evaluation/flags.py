"""The flags of `python -m membuilder.eval`: the published document's under their names, and ours."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from membuilder.bank.index import IndexConfig
from membuilder.bank.ranking import ANSWERING, SearchMethod
from membuilder.building.read_answer import OnBadOperation
from membuilder.command import ArgumentParser
from membuilder.config import describe
from membuilder.datasets.selection import add_data_flags
from membuilder.embedding.options import Precision
from membuilder.evaluation.names import AGENTS, AUTO, CHUNKS, CONTEXT_TOKENS, MEMORIES, ROUNDS, SYSTEMS
from membuilder.llm.flags import SETTINGS, add_cost_flags, add_embedding_flags, add_endpoint_flags
from membuilder.schemes.memalpha.config import parts_named
from membuilder.value_types import PositiveInt, Seed, flag_type

JUDGE_MODEL = "gpt-4.1"
"""The judge of the published document."""
EPILOG = """`python -m membuilder.eval compare A B` tests two runs on the same questions.

System agents is a scheme's builder with any model, a trained checkpoint among them. Serve the checkpoint with vLLM

    launch/serve.sh OUT/rl/model 8000 1 --served-model-name trained

and let it build while another model answers, or leave --model out to score retrieval alone:

    python -m membuilder.eval --system agents --system rag-turn --build-model trained --build-provider vllm \\
        --build-config OUT/rl/config.yaml --model gpt-4.1-mini

A tokenizer without a chat template (the quickstart's) was trained on the bare prompt: add
--chat-template '{{ messages[0]["content"] }}' to that."""


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def command_line() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m membuilder.eval",
        description="Evaluate ways of remembering on public benchmarks.",
        epilog=f"{EPILOG}\n\n--index {describe(IndexConfig)}",
        formatter_class=_Help,
    )
    flags = parser.add_argument_group("data")
    add_data_flags(flags, default="locomo")
    flags.add_argument("--sample-id", help="one sample (longmemeval)")
    flags.add_argument("--character-id", help="one character (perltqa)")
    text = "first questions of each dialogue only"
    flags.add_argument("--questions", type=flag_type(PositiveInt), metavar="N", help=text)
    _add_models(parser.add_argument_group("models"))
    _add_run(parser.add_argument_group("run").add_argument)
    add_embedding_flags(parser)
    add_cost_flags(parser)
    return parser


def _add_models(flags: argparse._ActionsContainer) -> None:
    text = "answers the questions; without it retrieval is scored and nothing is asked"
    add_endpoint_flags(flags, "", text, provider="openai")
    add_endpoint_flags(flags, "judge-", f"grades the answers; {JUDGE_MODEL} at provider openai unless given")
    text = "thinking of --model on or off in its chat template, where the server's has that; else as it is served"
    flags.add_argument("--thinking", choices=("on", "off"), help=text)
    add_endpoint_flags(flags, "build-", "writes the memories of agents, memagent and mem1; else --model")
    text = "config.yaml of the run that trained the checkpoint: its prompts, answer format and turns read at once"
    flags.add_argument("--build-config", type=Path, metavar="FILE", help=text)
    text = "an answer of --build-model that holds one: apply the others, ask once more first, or let it fail"
    bad = [str(each) for each in OnBadOperation]
    flags.add_argument("--on-bad-operation", default=bad[0], choices=bad, help=text)
    text = "longest answer of any model; a longer one fails"
    flags.add_argument("--max-tokens", type=flag_type(PositiveInt), default=4096, help=text)
    precisions = [str(each) for each in Precision]
    flags.add_argument(
        "--embedding-precision", choices=precisions, help="else what is fastest here; float32 for agents"
    )
    flags.add_argument("--vector-store", default="faiss", choices=("faiss",))
    text = f"how the entries of a bank are found; else as the builder's prompts say, else {ANSWERING}"
    flags.add_argument("--retrieval", choices=[str(each) for each in SearchMethod], help=text)
    text = "what their vectors are searched with, repeatable, such as kind=hnsw; the keys stand below"
    flags.add_argument("--index", **SETTINGS, help=text)


def _add_run(add: Callable[..., argparse.Action]) -> None:
    add("--mode", default="full", choices=("build", "answer", "full"))
    text = "repeatable; else rules, agents where a model is named, bank in mode answer"
    add("--system", action="append", choices=SYSTEMS, help=text)
    text = "how agents and rules write memory: four_agents, memalpha, or a folder with a scheme; else as --build-config"
    add("--scheme", metavar="NAME", help=text)
    text = "parts that a memory of scheme memalpha lacks, such as core,episodic; of a built one they are not read"
    add("--exclude-memory", type=parts_named, metavar="PARTS", help=text)
    text = "items an answer is given; under scheme memalpha of each part (published: 20)"
    add("--top-k", type=flag_type(PositiveInt), default=10, help=text)
    text = f"tokens of a whole prompt of long-context, whose middle is cut out; else {CONTEXT_TOKENS}"
    add("--context-tokens", type=flag_type(PositiveInt), metavar="N", help=text)
    text = f"chunks an answer of system bm25 is given; else {CHUNKS}"
    add("--chunks", type=flag_type(PositiveInt), metavar="N", help=text)
    text = "let the reader search a bank itself, in at most so many rounds, before it must answer"
    rounds: dict[str, Any] = {"nargs": "?", "const": ROUNDS, "metavar": "ROUNDS"}
    add("--agentic-search", type=flag_type(PositiveInt), help=f"{text}; {ROUNDS} without a number", **rounds)
    text = "model folder whose tokenizer counts memory, chunks and context; else four characters are a token"
    add("--tokenizer", type=Path, metavar="FOLDER", help=text)
    text = f"folder of banks, written by build and full, read by answer; {AUTO}: {MEMORIES} under --output-dir"
    add("--db-path", default=AUTO, help=text)
    add("--concurrency", type=flag_type(PositiveInt), default=1, help="questions in flight at once")
    add("--parallel", action="store_true", help="at least --workers questions in flight at once")
    text = f"with --parallel also dialogues {AGENTS} builds at once"
    add("--workers", type=flag_type(PositiveInt), default=4, help=text)
    add("--output-dir", type=Path, default=Path("logs"))
    add("--seed", type=flag_type(Seed), default=0, help="of the bootstrap")
    add("--verbose", action="store_true", help="show each question with what became of it")
