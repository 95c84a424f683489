"""The client against a real vLLM server with a tiny model of random weights, started once for this file by
launch/serve.sh.

What the fakes of test_client.py assume of a server is seen here to be so: schemas are kept to, tokens are counted as
the server counts them, and refused keys, unknown models and a killed server look the way the client expects.
"""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from membuilder import eval as command
from membuilder.bank.store import reading
from membuilder.build import main as build
from membuilder.datasets.load import load as load_dialogues
from membuilder.embedding.remote import EndpointEmbedder
from membuilder.errors import ChatError, ChatErrorKind, StoreError
from membuilder.evaluation.banks import BankFolder
from membuilder.evaluation.records import Record, read_records
from membuilder.llm.answer_and_judge import VERDICT_SCHEMA, AnswerVerdict, Strictness, answer, judge
from membuilder.llm.chat_model import Role, read_json
from membuilder.llm.client import CHECK_MESSAGES, ChatClient
from membuilder.llm.costs import Costs
from membuilder.llm.endpoints import EmbeddingEndpoint, ModelAccess, ModelEndpoint, Provider
from membuilder.llm.model_output import read_model_text
from membuilder.llm.usage import Usage
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.schemas import ResponseFormat, schema
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.schemes.memalpha.config import MemAlphaConfig, PromptsConfig
from membuilder.schemes.memalpha.scheme import WRITER, MemAlpha
from membuilder.schemes.memalpha.tools import tools as tools_of
from membuilder.schemes.scheme import Prompt, messages_of
from membuilder.types import Agent, Bank, Question
from rollout.chat_template import set_template_kwargs
from rollout.hf_engine import TransformersEngine
from rollout.tokens import encode_completion, encode_more, encode_prompt, load_tokenizer
from rollout.types import Completion, SamplingConfig
from tests import killed
from tests.patience import HANGS, LINEAR, SOON
from tests.test_engines import random_model
from tests.vllm_servers import Server, serving
from trainer.configs import TinyConfig
from trainer.model.tiny_model import END, build_model, train_tokenizer

pytest.importorskip("vllm", reason="vLLM is not installed (launch/setup.sh)")
pytestmark = pytest.mark.slow

KEY = "sk-tiny-server"
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}[{{ message.role }}]\n{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
TINY = TinyConfig(
    vocab_size=600, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=96, max_position=4096
)
TEXTS = ["Ann: I adopted a cat called Miso. #1", "Ben: Yesterday I moved to Oslo for a new job. #2"] * 5
QUESTION = Question(id="q", text="What is the cat called?", answer="Miso", category="single", evidence=("1",))


def make_brief(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Random weights that end what they begin: no string, list or answer goes on for more than a token or two.

    Two coordinates of the residual stream are kept for this: the first says whether the last token opened something,
    the second is always the same, so that what the head makes of it is a bias.
    """
    weights = model.model.embed_tokens.weight.detach()
    head = torch.randn(weights.shape, generator=torch.Generator().manual_seed(2)) / weights.shape[1] ** 0.5
    texts = [tokenizer.decode([token]) for token in range(len(weights))]
    weights[:, 0] = torch.tensor([-20.0 if text.endswith(("\n", '"', "[")) else 20.0 for text in texts])
    weights[:, 1] = 20.0
    head[:, 0] = torch.tensor(
        [-0.5 if text.isalpha() else 0.0 for text in texts]
    )  # what is opened begins with a letter
    head[:, 1] = torch.tensor([0.0 if text.strip() else -2.0 for text in texts])  # JSON may go on with blanks for ever
    for text, wish in ((END, 1.2), ('"', 1.0), ("]", 0.9), ("}", 0.8)):
        head[tokenizer.convert_tokens_to_ids(text), 0] = wish
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    tokenizer = train_tokenizer(TEXTS, FourAgents(PromptConfig()).tiny_tokens(60), TINY.vocab_size)
    tokenizer.chat_template = TEMPLATE
    model = build_model(tokenizer, TINY, seed=1)
    make_brief(model, tokenizer)
    model.save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    with serving(folder / "tiny", "--max-model-len=4096", "--max-num-seqs=16", key=KEY) as server:
        yield server


def config(server: Server, *, model: str = "tiny", max_tokens: int = 200, **endpoint) -> ModelEndpoint:
    patient = {
        "check_timeout_seconds": 120.0,
        "max_wait_seconds": 0.1,
    }  # the server may share its core with other tests
    settings = {"max_tokens": max_tokens, **patient, **endpoint}
    return ModelEndpoint(name=model, provider=Provider.VLLM, base_url=server.base_url, **settings)


def run(config: ModelEndpoint, use, usage: Usage | None = None, api_key: str = KEY):
    access, costs = ModelAccess(endpoint=config, api_key=api_key), Costs(usage=usage or Usage())

    async def session():
        async with ChatClient(access, Role.JUDGE, costs) as client:
            return await use(client)

    return asyncio.run(session())


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def post(server: Server, body: dict) -> dict:
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    address = f"{server.base_url}/chat/completions"
    with urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode(), headers)) as response:
        return json.load(response)


def server_counts(server: Server) -> dict[str, float]:
    """What the server itself counts: its Prometheus counters of tokens and of requests that came to an end."""
    root = server.base_url.removesuffix("/v1")
    with urllib.request.urlopen(f"{root}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return {
        name: sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"vllm:{name}_total{{"))
        for name in ("prompt_tokens", "generation_tokens", "request_success")
    }


def test_a_schema_is_kept_to_and_tokens_are_the_servers_own(server):
    usage, before = Usage(), server_counts(server)

    async def use(client):
        await client.check()
        return await asyncio.gather(
            *(client.complete(ask(f"Is {number} right?"), schema=VERDICT_SCHEMA) for number in range(8)),
            return_exceptions=True,
        )

    replies = run(config(server), use, usage)
    texts = [reply for reply in replies if isinstance(reply, str)]
    cut = [reply for reply in replies if isinstance(reply, ChatError)]
    # random weights may write a reason without end; what ends fits the schema
    assert {error.kind for error in cut} <= {ChatErrorKind.TRUNCATED} and len(texts) + len(cut) == 8
    assert texts and all(isinstance(read_json(text, VERDICT_SCHEMA)["correct"], bool) for text in texts)
    after, report = server_counts(server), usage.report()["judge"]
    assert report["calls"] == 9
    assert report["prompt_tokens"] == after["prompt_tokens"] - before["prompt_tokens"] > 0
    assert report["completion_tokens"] == after["generation_tokens"] - before["generation_tokens"] > 0


@pytest.mark.parametrize("agent", Agent)
@pytest.mark.parametrize("response_format", ResponseFormat)
def test_the_agents_own_schemas_are_taken(server, agent, response_format, caplog):
    wanted = schema(agent, response_format, num_turns=3)

    async def use(client):
        try:
            return await client.complete(ask("Ann: I adopted a cat. #1"), schema=wanted)
        except ChatError as error:
            assert error.kind is ChatErrorKind.TRUNCATED, error

    text = run(config(server, max_tokens=60), use)
    refused = [record for record in caplog.records if record.name == "membuilder.llm.client"]
    assert refused == [] and (text is None or isinstance(json.loads(text), dict))


def test_an_answer_and_a_judgement_come_back(server):
    """What random weights say is chance, but it is said within the schema and is the model's own."""
    replies = []

    class Watched:
        def __init__(self, client: ChatClient):
            self._client = client

        async def complete(self, messages, *, schema=None) -> str:
            replies.append(await self._client.complete(messages, schema=schema))
            return replies[-1]

    async def use(client):
        text = await answer(
            QUESTION, core="", memories=["[2023-05-08] Ann: I adopted a cat called Miso."], model=Watched(client)
        )
        return text, await judge(QUESTION, "Miso", Strictness.STRICT, Watched(client))

    usage = Usage()
    text, judgement = run(config(server, max_tokens=200), use, usage)
    assert replies[0] and text == read_model_text(replies[0])
    verdict = read_json(replies[-1], VERDICT_SCHEMA)
    assert judgement == AnswerVerdict(correct=verdict["correct"], reason=verdict.get("reason", ""))
    assert usage.report()["judge"]["calls"] == len(replies) >= 2


def test_an_unknown_model_and_a_refused_key_are_found_by_the_check(server):
    for settings, key, kind, hint in (
        (config(server, model="other"), KEY, ChatErrorKind.UNKNOWN_MODEL, "It lists: tiny"),
        (config(server), "sk-wrong", ChatErrorKind.REFUSED_KEY, "--api-key"),
    ):
        began = time.monotonic()
        with pytest.raises(ChatError) as caught:
            run(settings, lambda client: client.check(), api_key=key)
        assert time.monotonic() - began < SOON
        assert (caught.value.kind, caught.value.fatal) == (kind, True) and hint in str(caught.value)


def test_a_prompt_longer_than_the_context_fails_that_call_alone(server):
    async def use(client):
        with pytest.raises(ChatError) as caught:
            await client.complete(ask("cat " * 6000), schema=VERDICT_SCHEMA)
        return caught.value

    error = run(config(server), use)
    assert (error.kind, error.fatal) == (ChatErrorKind.UNFIT_PROMPT, False) and "4096" in str(error)


def test_a_server_that_chats_only_is_refused_as_an_embedder(server):
    with pytest.raises(ChatError) as caught:
        EndpointEmbedder(
            EmbeddingEndpoint(name="tiny", provider=Provider.VLLM, base_url=server.base_url), Usage(), api_key=KEY
        )
    assert caught.value.kind in (ChatErrorKind.UNKNOWN_MODEL, ChatErrorKind.BAD_REQUEST)


# A whole evaluation: build, answer, judge


SAID = [
    ["I adopted a cat called Miso.", "Lovely, is it grey?"],
    ["Yesterday I moved to Oslo for a new job.", "How far is that!"],
    ["The cat likes fish.", "Mine did too."],
    ["My sister visits in June.", "Say hello to her."],
]
ASKED = ["What is the cat called?", "Where did Ann move?", "What does the cat like?", "Who visits in June?"] * 2


@pytest.fixture(scope="module")
def evaluate(server, tmp_path_factory):
    """Flags of an evaluation of one dialogue by the four agents, into a folder of that name."""
    folder = tmp_path_factory.mktemp("evaluation")
    sessions = [
        {
            "timestamp": f"2023-05-{8 + number:02}T09:00",
            "turns": [{"speaker": name, "text": text} for name, text in zip(("Ann", "Ben"), said, strict=True)],
        }
        for number, said in enumerate(SAID)
    ]
    questions = [{"question": text, "answer": "Miso", "category": "single-hop", "evidence": ["S1:1"]} for text in ASKED]
    lines = json.dumps({"id": "d1", "speakers": ["Ann", "Ben"], "sessions": sessions, "questions": questions})
    (folder / "data.jsonl").write_text(lines + "\n", encoding="utf-8")
    fixed = f"--dataset custom --dataset-path {folder / 'data.jsonl'} --embedding-cache {folder / 'embeddings'}"
    models = f"--model tiny --judge-model tiny --provider vllm --judge-provider vllm --base-url {server.base_url}"

    def flags(name: str) -> list[str]:
        run = f"--api-key {KEY} --max-tokens 200 --output-dir {folder / name}"
        return f"{fixed} {models} {run}".split()

    flags.folder = folder
    return flags


@pytest.fixture(scope="module")
def whole(server, evaluate) -> dict:
    """What an evaluation that nobody stopped wrote, and what the server counted meanwhile."""
    before = server_counts(server)
    assert command.main(evaluate("whole")) == 0
    after = server_counts(server)
    written = json.loads((evaluate.folder / "whole" / "results.json").read_text(encoding="utf-8"))
    return {"results": written, "counted": {name: after[name] - before[name] for name in after}}


def records(folder: Path) -> list[Record]:
    return sorted(read_records(folder / "answers.jsonl"), key=lambda record: record.key)


def stored(folder: Path) -> tuple:
    with reading(folder / "memories" / "d1.db") as store:
        return store.sessions()


def test_a_whole_evaluation_completes_and_its_accounts_are_the_servers_own(whole, evaluate):
    run, folder = whole["results"]["run"], evaluate.folder / "whole"
    assert run["resumed"] is False and run["agents"]["sessions"] == 4 and run["agents"]["answers"] == 16
    usage = run["usage"]
    assert list(usage) == ["answerer", "builder", "judge"]
    assert usage["builder"]["calls"] == 1 + 16  # the check, and four agents in four sessions
    assert usage["answerer"]["calls"] == 1 + len(ASKED)
    assert usage["judge"]["calls"] >= 1 + 2 * len(ASKED)  # a reply that is no verdict is asked for again
    for ours, theirs in (
        ("prompt_tokens", "prompt_tokens"),
        ("completion_tokens", "generation_tokens"),
        ("calls", "request_success"),
    ):
        assert sum(role[ours] for role in usage.values()) == whole["counted"][theirs] > 0
    system = whole["results"]["systems"]["agents"]
    assert system["questions"] == len(ASKED)
    assert all(judge["unjudged"] == 0 and judge["judged"] == len(ASKED) for judge in system["judge"].values())
    assert BankFolder(folder / "memories").manifest["model"] == "tiny"
    assert len(stored(folder)[-1].answers) == 4 and any(record.answer for record in records(folder))


SHORT = PromptsConfig(template_set="compact")
SCHEMES = {Agent.EPISODIC: FourAgents(PromptConfig()), WRITER: MemAlpha(MemAlphaConfig(max_turns=2, prompts=SHORT))}
CALL = '<tool_call>\n{"name": "memory_delete", "arguments": {"memory_type": "core_memory"}}\n</tool_call>'


@pytest.mark.parametrize("role", SCHEMES)
@pytest.mark.parametrize("turn", [1, 2])
def test_a_prompt_reaches_a_served_checkpoint_as_it_was_trained_on(server, evaluate, role, turn):
    """The tokens that vLLM counts are those of the trainer's own encoding, with tools and results of calls too."""
    session = load_dialogues(evaluate.folder / "data.jsonl")[0].sessions[0]
    prompt, tokenizer = SCHEMES[role].ask(role, session, Bank(), {role: ()}), load_tokenizer(str(server.model))
    messages, tools = messages_of(prompt), prompt.tools if isinstance(prompt, Prompt) else ()
    expected, usage = encode_prompt(tokenizer, prompt), Usage()
    assert bool(tools) == (role == WRITER)
    if turn == 2:
        said = tuple(encode_completion(tokenizer, CALL))
        result = {"role": "tool" if tools else "user", "content": '{"status": "ok"}'}
        answered = Completion(token_ids=said, rollout_logprobs=(0.0,) * len(said), finished=True, weight_version=0)
        # this template writes no end behind an answer; training keeps the one that was sampled
        expected = [*expected, *said[:-1], *encode_more(tokenizer, answered, [result])]
        messages += [{"role": "assistant", "content": CALL}, result]

    async def use(client):
        with suppress(ChatError):  # cut short, which is no matter here
            await client.complete(messages, tools=tools)

    run(config(server, max_tokens=5), use, usage)
    assert usage.report()["judge"]["prompt_tokens"] == len(expected)


def test_a_build_with_tools_asks_as_training_does(server, evaluate, tmp_path):
    """Random weights call nothing, so that each chunk is read beside an empty memory."""
    flags = f"--scheme memalpha --dataset custom --dataset-path {evaluate.folder / 'data.jsonl'} --model tiny"
    flags += f" --provider vllm --base-url {server.base_url} --api-key {KEY} --out {tmp_path / 'memory.db'}"
    before = server_counts(server)
    build([*flags.split(), "memalpha.prompts.template_set=compact", "model.max_tokens=60", "max_failed=0.99"])
    after = server_counts(server)
    with reading(tmp_path / "memory.db") as store:
        sessions, bank = [each.session for each in store.sessions()], store.bank()
    assert len(sessions) == 4 and bank == Bank()
    writer, tokenizer = MemAlpha(MemAlphaConfig(prompts=SHORT)), load_tokenizer(str(server.model))
    asked = [writer.ask(WRITER, session, Bank(), {WRITER: ()}) for session in sessions]
    asked.append(Prompt(messages=tuple(CHECK_MESSAGES)))
    assert after["request_success"] - before["request_success"] == len(asked)
    expected = sum(len(encode_prompt(tokenizer, prompt)) for prompt in asked)
    assert after["prompt_tokens"] - before["prompt_tokens"] == expected


def test_special_tokens_stay_in_answers_of_a_model_that_is_offered_tools(server):
    """Some tokenizers have `<tool_call>` as one, and this server would leave it out."""
    tokenizer, access = load_tokenizer(str(server.model)), ModelAccess(endpoint=config(server, max_tokens=2))
    client = ChatClient(access, Role.BUILDER, Costs(usage=Usage()))
    (tool, *_) = tools_of(MemAlphaConfig())
    always = {"logit_bias": {str(tokenizer.pad_token_id): 100}}
    bodies = [client._body(ask("Hi"), [tool]) | always, client._body(ask("Hi")) | always]
    assert [post(server, body)["choices"][0]["message"]["content"] or "" for body in bodies] == ["<pad><pad>", ""]


def test_an_evaluation_killed_while_it_builds_and_while_it_answers_ends_like_one_never_stopped(server, whole, evaluate):
    folder, counted = evaluate.folder / "killed", server_counts(server)

    def kill_once(begun: Callable[[], bool]) -> None:
        process = killed.start(command.main, evaluate("killed"))
        deadline = time.monotonic() + HANGS
        while not begun():
            assert process.is_alive() and time.monotonic() < deadline, "it ended before the moment to kill it at"
            time.sleep(0.01)
        process.kill()
        process.join()

    store, answers = folder / "memories" / "d1.db", folder / "answers.jsonl"
    kill_once(lambda: store.is_file() and num_sessions(store) > 0)
    before = stored(folder)
    assert 0 < len(before) < 4 and not answers.exists()
    kill_once(lambda: answers.is_file() and b"\n" in answers.read_bytes())
    assert stored(folder)[: len(before)] == before  # not built again: even the seconds are the same
    answered = answers.read_bytes()
    assert 0 < answered.count(b"\n") < len(ASKED)
    assert command.main(evaluate("killed")) == 0
    assert answers.read_bytes().startswith(answered[: answered.rfind(b"\n") + 1])
    assert records(folder) == records(evaluate.folder / "whole")
    with reading(store) as resumed, reading(evaluate.folder / "whole" / "memories" / "d1.db") as straight:
        assert resumed.bank() == straight.bank()
        assert [
            {agent: (answer.text, answer.failure) for agent, answer in each.answers.items()}
            for each in resumed.sessions()
        ] == [
            {agent: (answer.text, answer.failure) for agent, answer in each.answers.items()}
            for each in straight.sessions()
        ]
    last = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert last["systems"] == whole["results"]["systems"] and last["run"]["resumed"] is True
    check_accounts(last["run"]["usage"], counted, server)


def check_accounts(usage: dict, before: dict[str, float], server: Server) -> None:
    """The accounts of three processes, two of them killed, are the server's but for what was in flight at the two
    kills: at most four agents' requests, and an answer's or its two judges', of 200 tokens each.
    """
    after = server_counts(server)
    assert usage["builder"]["calls"] >= 2 + 16 and usage["answerer"]["calls"] >= 3 + len(ASKED) - 1
    calls, tokens = (
        after[theirs] - before[theirs] - sum(role[ours] for role in usage.values())
        for ours, theirs in (("calls", "request_success"), ("completion_tokens", "generation_tokens"))
    )
    assert 0 <= calls <= 4 + 2 and 0 <= tokens <= (4 + 2) * 200


def num_sessions(path: Path) -> int:
    try:
        with reading(path) as store:
            return store.num_sessions()
    except StoreError:  # a moment after its file was made nothing stands in it
        return 0


def test_a_served_model_reads_samples_and_stops_as_in_process(tmp_path):
    """With an option of its chat template, an end token of its generation config, and settings there that training
    does not follow.
    """
    folder, greedy = tmp_path / "option", SamplingConfig(temperature=0.0, top_p=1.0, max_tokens=24)
    tokenizer = train_tokenizer(TEXTS, [], TINY.vocab_size)
    tokenizer.chat_template = TEMPLATE + "{% if mood is defined %}({{ mood }}){% endif %}"
    set_template_kwargs(tokenizer, {"mood": "calm"})
    tokenizer.save_pretrained(folder)
    random_model(tokenizer, seed=1).save_pretrained(folder)
    prompt = encode_prompt(load_tokenizer(str(folder)), "Hi")
    ((endless,),) = TransformersEngine(folder).generate([prompt], 1, greedy, seed=1)
    ids = endless.token_ids
    end = [token for place, token in enumerate(ids) if token not in ids[:place]][-1]
    settings = {"eos_token_id": [tokenizer.eos_token_id, end], "repetition_penalty": 5.0, "top_k": 1, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    ((expected,),) = TransformersEngine(folder).generate([prompt], 1, greedy, seed=1)
    assert expected.finished and 3 < len(expected.token_ids) == ids.index(end) + 1
    with serving(folder, "--max-model-len=512", "--max-num-seqs=4", key=KEY) as server:
        body = {"model": "option", "messages": ask("Hi"), "max_tokens": 24, "temperature": 0, "return_token_ids": True}
        said = post(server, body)
    choice = said["choices"][0]
    assert said["prompt_token_ids"] == prompt and tokenizer.decode(prompt).endswith("[assistant]\n(calm)")
    assert (tuple(choice["token_ids"]), choice["finish_reason"]) == (expected.token_ids, "stop")


def test_killing_the_server_ends_the_calls_in_flight_as_unreachable(server):
    """Last in the file: the server does not come back."""

    async def use(client):
        calls = [asyncio.ensure_future(client.complete(ask(f"Tell {number}."))) for number in range(8)]
        await asyncio.sleep(0.3)
        server.process.kill()
        return await asyncio.gather(*calls, return_exceptions=True)

    endless = config(server, max_tokens=3000, concurrency=4, max_attempts=3)
    endless.extra_body["ignore_eos"] = True
    began = time.monotonic()
    results = run(endless, use)
    assert time.monotonic() - began < LINEAR
    errors = [result for result in results if not isinstance(result, str)]
    assert {error.kind for error in errors} <= {ChatErrorKind.UNREACHABLE, ChatErrorKind.TRUNCATED}
    assert any(error.fatal for error in errors)
