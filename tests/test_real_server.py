"""A real pretrained model on a real vLLM server, with the defaults of launch/serve.sh."""

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from datetime import datetime

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from membuilder.errors import ChatError, ChatErrorKind, ConfigError
from membuilder.llm.chat_model import Role
from membuilder.llm.client import ChatClient
from membuilder.llm.costs import Costs
from membuilder.llm.endpoints import ModelAccess, ModelEndpoint, Provider
from membuilder.llm.usage import Usage
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.schemas import ResponseFormat
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.types import Bank, Session, Turn
from rollout.policy_folder import load_policy
from rollout.tokens import encode_completion, encode_prompt
from tests.patience import HANGS
from tests.pretrained import smollm2  # noqa: F401
from tests.vllm_servers import Server, serving

pytest.importorskip("vllm", reason="vLLM is not installed (launch/setup.sh)")
pytestmark = pytest.mark.slow

KEY = "sk-real-server"
QUESTIONS = ["What is the capital of France?", "Name three animals that live in the sea.", "Who wrote Hamlet?"]
NUM_TOKENS = 24


@pytest.fixture(scope="module")
def server(smollm2) -> Iterator[Server]:  # noqa: F811
    with serving(smollm2, key=KEY) as server:
        yield server


def post(server: Server, path: str, **body) -> dict:
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(server.base_url + path, json.dumps({"model": "smollm2"} | body).encode(), headers)
    with urllib.request.urlopen(request, timeout=HANGS) as response:
        return json.load(response)


@torch.no_grad()
def logprobs(model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """Of every token of the vocabulary at the place of each of `tokens` (T, V)."""
    logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1)


def test_greedy_tokens_and_log_probs_are_those_of_transformers(server):
    """In the checkpoint's bfloat16: no further from float32 than transformers' own bfloat16 is."""
    same = AutoModelForCausalLM.from_pretrained(server.model, dtype="auto")
    exact = AutoModelForCausalLM.from_pretrained(server.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(server.model)
    assert same.dtype == torch.bfloat16
    texts, server_errors, own_errors = [], [], []
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        settings = {"max_tokens": NUM_TOKENS, "temperature": 0, "logprobs": 1, "return_token_ids": True}
        choice = post(server, "/completions", prompt=prompt, **settings)["choices"][0]
        tokens, found = choice["token_ids"], torch.tensor(choice["logprobs"]["token_logprobs"])
        places = torch.tensor(tokens)[:, None]
        truth, own = logprobs(exact, prompt, tokens), logprobs(same, prompt, tokens)
        chosen = truth.gather(1, places)[:, 0]
        # greedy: no other token is better by more than bfloat16 can confuse
        assert (truth.max(-1).values - chosen).max() < 0.3
        server_errors.append((found - chosen).abs())
        own_errors.append((own.gather(1, places)[:, 0] - chosen).abs())
        texts.append(choice["text"])
    assert torch.cat(server_errors).mean() < 1.5 * torch.cat(own_errors).mean()
    assert "Paris" in texts[0] and "Shakespeare" in texts[2], texts


def test_its_folder_is_whole_and_its_answers_end_where_its_template_says(smollm2):  # noqa: F811
    policy = load_policy(smollm2, weights=False)
    tokenizer = policy.tokenizer
    assert tokenizer.convert_ids_to_tokens(policy.stop_ids)[0] == "<|im_end|>" and policy.unserved_stop_ids == ()
    text = tokenizer.decode([*encode_prompt(tokenizer, "Hi"), *encode_completion(tokenizer, "Ho")])
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>")
    with pytest.raises(ConfigError, match="max_model_len=9000 is beyond the 8192 positions"):
        load_policy(smollm2, weights=False, lengths={"max_model_len": 9000})


def test_whole_sentences_are_written_under_the_schemas(server):
    """All four agents about one session, as a build asks them; an answer may be cut short, but not to one character."""
    turns = [
        ("Ann", "Yesterday I adopted a grey cat called Miso."),
        ("Ben", "I start at the library on Monday."),
    ]
    session = Session(
        id="s",
        index=0,
        timestamp=datetime(2023, 5, 8),
        turns=tuple(Turn(id=name, speaker=name, role="user", text=text) for name, text in turns),
    )
    scheme = FourAgents(PromptConfig(response_format=ResponseFormat.OPERATIONS))
    endpoint = ModelEndpoint(
        name="smollm2", provider=Provider.VLLM, base_url=server.base_url, max_tokens=150, timeout_seconds=300
    )

    async def answers() -> list:
        shown = scheme.show(session, Bank(), None)
        async with ChatClient(
            ModelAccess(endpoint=endpoint, api_key=KEY), Role.BUILDER, Costs(usage=Usage())
        ) as client:
            asked = [
                client.complete(
                    [{"role": "user", "content": scheme.ask(role, session, Bank(), shown)}],
                    schema=scheme.schema(role, session),
                )
                for role in scheme.roles
            ]
            return await asyncio.gather(*asked, return_exceptions=True)

    memories = []
    for role, answer in zip(scheme.roles, asyncio.run(answers()), strict=True):
        if isinstance(answer, ChatError):
            assert answer.kind is ChatErrorKind.TRUNCATED, answer
            continue
        update = scheme.parse(role, answer, session)
        assert update.failure is None, (role, answer)
        memories += [operation.text for operation in update.operations if operation.text]
    assert memories and max(len(memory.split()) for memory in memories) >= 3, memories
