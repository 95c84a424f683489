"""Runs of memalpha as its published configs have them, in miniature: a tiny Qwen3 whose tokenizer has the chat template
and the tags of a real Qwen3, instances in a Parquet file, models that read and judge behind a server.

Random weights call nothing. So the engine says what a script says, with the log-probs that its weights give to that.
"""

import json
import random
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from membuilder.datasets.memalpha import row_of, write_rows
from membuilder.generate.instances import generate_instances
from membuilder.schemes.memalpha.calls import MARKS
from membuilder.schemes.memalpha.config import CallFormat, MemAlphaConfig
from membuilder.schemes.memalpha.scheme import WRITER, MemAlpha
from membuilder.schemes.scheme import text_of
from membuilder.types import Bank, Question
from rollout.hf_engine import TransformersEngine
from rollout.tokens import encode_completion, load_tokenizer
from rollout.types import Completion, Sampled
from tests.fault_server import Request, answering, echo
from trainer.configs import TinyConfig
from trainer.model.tiny_model import build_model, train_tokenizer

CONFIG = "configs/memalpha_qwen3_4b_1gpu.yaml"
TAGS = [f"<{end}{name}>" for name in ("tool_call", "tool_response", "think") for end in ("", "/")]
SIZES = TinyConfig(vocab_size=3000, hidden_size=32, num_layers=2, intermediate_size=64, max_position=32768)
THOUGHTS = ("Nothing much.", "Which of these lines would somebody ask about at the end? " * 8)
ALL_MARKS = tuple(mark for marks in MARKS.values() for mark in marks)


def qwen3_template() -> str:
    """The template of Qwen3 as the package trl carries it."""
    found = find_spec("trl")
    path = None if found is None else Path(found.submodule_search_locations[0]) / "chat_templates" / "qwen3.jinja"
    if path is None or not path.is_file():
        pytest.skip("the package trl, which carries Qwen3's chat template, is not installed (launch/setup.sh)")
    return path.read_text(encoding="utf-8")


def qwen3_tokenizer(*, special_tags: bool = False) -> PreTrainedTokenizerFast:
    """A small vocabulary with the control tokens of Qwen3; there its tags of calls and of thinking are not special."""
    sessions = [session for dialogue in generate_instances(8, 3, "train", 2) for session in dialogue.sessions]
    scheme = MemAlpha(MemAlphaConfig(max_turns=2))
    texts = [text_of(scheme.ask(WRITER, session, Bank(), {WRITER: ()})) for session in sessions]
    tokenizer = train_tokenizer([*texts, qwen3_template(), *THOUGHTS], [], SIZES.vocab_size)
    ends = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in ends], special_tokens=True)
    tags = [AddedToken(text, normalized=False, special=special_tags) for text in TAGS]
    tokenizer.add_tokens(tags, special_tokens=special_tags)
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.chat_template = qwen3_template()
    return tokenizer


def make_model(folder: Path, *, special_tags: bool = False) -> None:
    tokenizer = qwen3_tokenizer(special_tags=special_tags)
    build_model(tokenizer, SIZES, seed=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_data(folder: Path) -> list[str]:
    """Write instances for training and evaluation; return the keys that name them.

    Those for training are asked what some calls store (`answer`), so that some memories answer and others do not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, split, number in (("train", "train", 4), ("test", "heldout", 2)):
        dialogues = generate_instances(number, 1, split, 2)
        if name == "train":
            asked = Question(id="cats", text="What animals are kept?", answer="cats", category="squad", evidence=())
            dialogues = [replace(each, questions=(*each.questions, asked)) for each in dialogues]
        about = {"data_source": "squad", "prompt": "", "metadata": "{}"}
        rows = [row_of(each, instance_id=place, **about) for place, each in enumerate(dialogues)]
        write_rows(folder / f"{name}.parquet", rows)
    return [f"data.path={folder}/train.parquet", f"data.eval_path={folder}/test.parquet", "data.num_steering=1"]


def reply(request: Request) -> str:
    """A reader that reads out its prompt, the memory too, and judges that decide by the text alone."""
    text = echo(request)
    if "response_format" in request.body:
        return json.dumps({"correct": zlib.crc32(text.encode()) % 3 > 0, "reason": "so it is"})
    return text


models = answering(reply)
"""Who reads, grades and judges."""


def commands(model: Path, data: list[str], base_url: str, *more: str) -> tuple[list[str], list[str]]:
    """The arguments of SFT and RL, but for `out`; RL is the published config, smaller."""
    same = [f"model.path={model}", "model.dtype=float32", *data, "shared_bound=1e-5", *more]
    read = [f"reward.{role}.base_url={base_url}" for role in ("answerer", "grader", "validator")]
    for_sft = [*(each for each in same if not each.startswith("sampling.")), "scheme=memalpha", "optim.lr=1e-3"]
    for_sft += ["max_steps=4", "sessions_per_step=3", "save_every=3"]
    for_rl = ["--config", CONFIG, *same, *read, "engine=transformers", "instances_per_step=2", "updates_per_step=2"]
    for_rl += ["num_rollouts=3", "num_steps=2", "save_every=1", "eval_every=2", "parity_every=1", "parity_bound=0.001"]
    return for_sft, [*for_rl, "optim.lr=1e-3"]


def speaks(model: Path, response_format: str = CallFormat.HERMES) -> Callable[[], None]:
    """Makes engines say calls in a format instead of what their weights would sample; they are drawn by prompt."""

    def arm() -> None:
        tokenizer = load_tokenizer(str(model))

        def finished(self, prompts, n, sampling, seed):
            for place, prompt in enumerate(prompts):
                draw = random.Random(zlib.crc32(f"{seed} {prompt}".encode()))
                for number in range(n):
                    text = answer(tokenizer.decode(prompt), draw, CallFormat(response_format))
                    ids = encode_completion(tokenizer, text, ALL_MARKS)
                    yield Sampled(place, number, said(self, prompt, ids, sampling))

        TransformersEngine._finished = finished

    return arm


@torch.no_grad()
def said(engine: TransformersEngine, prompt: list[int], ids: list[int], sampling) -> Completion:
    """The completion as if it had been sampled: its log-probs are those of the weights; a long one is cut."""
    kept = ids[: sampling.max_tokens]
    logits = engine._model(torch.tensor([[*prompt, *kept]])).logits[0, len(prompt) - 1 : -1].float()
    logprobs = (logits / (sampling.temperature or 1)).log_softmax(-1).gather(-1, torch.tensor(kept)[:, None])
    return Completion(
        token_ids=tuple(kept),
        rollout_logprobs=tuple(logprobs[:, 0].tolist()),
        finished=len(kept) == len(ids),
        weight_version=engine._version,
    )


def answer(prompt: str, draw: random.Random, response_format: CallFormat) -> str:
    """Think where the prompt leaves that open, then call: a search first where the writer may, at last nothing."""
    thought = "" if prompt.endswith("</think>\n\n") else f"<think>\n{THOUGHTS[draw.random() < 0.75]}\n</think>\n\n"
    asked = prompt[prompt.rindex("<chunk>") :]
    chunk, _, behind = asked.partition("</chunk>")
    if thought and thought[8] == "N":
        return f"{thought}Done"
    lines, shown = (re.findall(rf"(?m)^\[({what})\] ", part) for what, part in ((r"\d+", chunk), (r"m\d+", behind)))
    semantic = {"memory_type": "semantic_memory"}
    calls = [("memory_insert", semantic | {"lines": [int(line) for line in draw.sample(lines, 3)]})]
    if "search_memory" in prompt and "ARGS" not in prompt and "<tool_response>" not in behind:
        calls.append(("search_memory", semantic | {"query": "a cat", "search_method": "bm25"}))
    if shown and draw.random() < 0.5:
        calls.append(("memory_update", semantic | {"memory_id": draw.choice(shown), "new_content": "Ann has a cat."}))
    if draw.random() < 0.5:
        calls.append(("memory_insert", semantic | {"content": f"Ann owns {draw.randrange(99)} cats."}))
    if draw.random() < 0.3:
        calls.append(("memory_delete", semantic | {"memory_id": "m999"}))
    return thought + "\n".join(written(name, arguments, response_format) for name, arguments in calls)


def written(name: str, arguments: dict, response_format: CallFormat) -> str:
    if response_format is CallFormat.MARKS:
        return f"✿FUNCTION✿: {name}\n✿ARGS✿: {json.dumps(arguments)}"
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
