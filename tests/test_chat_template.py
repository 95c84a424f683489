"""What chat templates write around prompts and answers, and their options, from training to a server's request."""

from collections.abc import Iterator
from datetime import datetime

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from membuilder.build import main as build
from membuilder.building.config import BuildConfig, Keys
from membuilder.config import dump
from membuilder.config import load as load_config
from membuilder.embedding import options
from membuilder.errors import ConfigError
from membuilder.llm.endpoints import ModelEndpoint
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.schemas import ResponseFormat
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.types import Agent, Bank, FailureKind, Session, Turn
from rollout.chat_template import chat_format, set_template_kwargs
from rollout.sampler import sample_groups
from rollout.tokens import decode_completion, encode_completion, encode_prompt, load_tokenizer
from rollout.turns import Task
from rollout.types import Completion, Sampled, SamplingConfig
from tests.evaluating import caller, hash_embedder, reply
from tests.fakes import HashEmbedder, streamed
from tests.fault_server import FaultServer, answering
from tests.test_expert import THREE, custom, served
from trainer import run_setup
from trainer.batching.packing import sequences_of
from trainer.configs import TinyConfig
from trainer.model.tiny_model import END, build_model, train_tokenizer
from trainer.rl_config import RLConfig
from trainer.sft_config import SFTConfig

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
)
HYBRID = CHATML + (
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""As Qwen3's: it thinks unless told not to."""
ALWAYS = CHATML + "<think>\n{% endif %}"
"""As those of Qwen3 Thinking and DeepSeek-R1."""
LLAMA = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n\n"
    "{{ message.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
NOT_THINKING = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
ANSWER = '{"#1":"add"}'
PROMPTS = PromptConfig(template_set="compact", response_format=ResponseFormat.TURNS, entries_shown=0)
SESSION = Session(
    id="s", index=0, timestamp=datetime(2023, 5, 8), turns=(Turn(id="1", speaker="A", role="user", text="A cat."),)
)


def tokenizer_with(template: str | None, begins: str | None = None, ends: str | None = None) -> PreTrainedTokenizerFast:
    """Told to put special tokens around a text where `begins` or `ends` name them."""
    tokenizer = train_tokenizer(["A: A cat."], [], 280)
    tokenizer.add_tokens(["<s>", "<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.bos_token = "<s>"
    around = [token for token in (begins, "$A", ends) if token is not None]
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in around if token != "$A"]
    if special:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=" ".join(around), special_tokens=special)
    tokenizer.chat_template = template
    return tokenizer


# where a prompt begins and an answer ends


def test_without_a_template_a_prompt_begins_and_does_not_end_as_the_tokenizer_says():
    tokenizer = tokenizer_with(None, begins="<s>", ends=END)
    assert tokenizer.decode(tokenizer("A cat.")["input_ids"]) == f"<s>A cat.{END}"
    assert tokenizer.decode(encode_prompt(tokenizer, "A cat.")) == "<s>A cat."
    assert tokenizer.decode(encode_completion(tokenizer, "A cat.")) == f"A cat.{END}"
    assert tokenizer.decode(encode_prompt(tokenizer_with(None), "A cat.")) == "A cat."


def test_a_template_alone_says_how_a_prompt_begins():
    """Once: what transformers and vLLM's server make of the same messages."""
    for template, start in ((LLAMA, "<s><|im_start|>user\n\n"), (HYBRID, "<|im_start|>user\n")):
        tokenizer = tokenizer_with(template, begins="<s>")
        assert tokenizer.decode(encode_prompt(tokenizer, "A cat.")).startswith(f"{start}A cat.<|im_end|>")


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (HYBRID, "<|im_end|>"),
        (LLAMA, "<|im_end|>"),
        ("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}", END),  # no token of its own
        ("{{ messages[0].content }}<|im_end|><|im_start|>", END),  # no answer
        (None, END),
    ],
)  # fmt: skip
def test_the_end_of_an_answer_is_the_templates_else_the_tokenizers(template, end):
    tokenizer = tokenizer_with(template)
    assert tokenizer.convert_ids_to_tokens(chat_format(tokenizer).end_id) == end
    assert tokenizer.decode(encode_completion(tokenizer, ANSWER)) == f"{ANSWER}{end}"


def test_a_template_that_is_changed_is_looked_at_anew():
    tokenizer = tokenizer_with(ALWAYS)
    assert chat_format(tokenizer).think_opening
    tokenizer.chat_template = HYBRID
    assert not chat_format(tokenizer).think_opening


def test_a_template_that_fails_is_told(tmp_path):
    tokenizer_with("{% for %}").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"the chat template of '{tmp_path}' cannot write .*mend it"):
        load_tokenizer(str(tmp_path), {"enable_thinking": False})
    with pytest.raises(ConfigError, match="the chat template cannot write a question and its answer: no assistants"):
        chat_format(tokenizer_with("{% for m in messages if m.role != 'user' %}{{ raise_exception('no assistants') }}"
                                   "{% endfor %}"))  # fmt: skip


@pytest.mark.parametrize("template", ["{{ messages[0].role }}", "{% for part in messages[0].content %}{% endfor %}"])
def test_a_template_that_leaves_out_the_prompt_is_told(template):
    with pytest.raises(ConfigError, match="the chat template leaves out what a user says"):
        chat_format(tokenizer_with(template))


# thinking


@pytest.mark.parametrize("opening", ["<think>\n", "<think>", "<think>\n\n"])
def test_where_the_prompt_opens_a_think_block_the_target_closes_it(opening):
    """Then training and sampling show the same text as a template that closes it in the prompt."""
    opened, closed = tokenizer_with(CHATML + opening + "{% endif %}"), tokenizer_with(HYBRID)
    set_template_kwargs(closed, {"enable_thinking": False})
    texts = [
        tokenizer.decode([*encode_prompt(tokenizer, "A cat."), *encode_completion(tokenizer, ANSWER)])
        for tokenizer in (opened, closed)
    ]
    assert texts[0] == texts[1] and texts[0].endswith(f"assistant\n<think>\n\n</think>\n\n{ANSWER}<|im_end|>")


def test_a_target_with_reasoning_of_its_own_keeps_it():
    target = f"<think>\nA turn.\n</think>\n\n{ANSWER}"
    opened, plain = tokenizer_with(ALWAYS), tokenizer_with(HYBRID)
    assert opened.decode(encode_completion(opened, target)) == f"A turn.\n</think>\n\n{ANSWER}<|im_end|>"
    assert plain.decode(encode_completion(plain, target)) == f"{target}<|im_end|>"


class Says:
    """An engine that always answers with one text."""

    max_model_len = 10_000

    def __init__(self, token_ids: list[int]) -> None:
        self._token_ids = tuple(token_ids)

    def stream(self, prompts, n, sampling, seed) -> Iterator[Sampled]:
        logprobs = (0.0,) * len(self._token_ids)
        said = Completion(token_ids=self._token_ids, rollout_logprobs=logprobs, finished=True, weight_version=0)
        return streamed([[said] * n for _ in prompts])


def failures(tokenizer: PreTrainedTokenizerFast, token_ids: list[int]) -> set[FailureKind | None]:
    """Of the four agents, where the model answers like this."""
    scheme = FourAgents(PROMPTS)
    task = Task(id="t", dialogue_id="d", session=SESSION, bank=Bank(), shown=dict.fromkeys(Agent, ()))
    (group,) = sample_groups([task], Says(token_ids), tokenizer, scheme, SamplingConfig(max_tokens=9), 1, seed=1)
    found = [sample.failure for sample in group.rollouts[0].samples.values()]
    return {None if failure is None else failure.kind for failure in found}


@pytest.mark.parametrize(
    ("template", "said", "expected"),
    [
        (ALWAYS, f"Only one turn.\n</think>\n\n{ANSWER}<|im_end|>", None),
        (ALWAYS, f"{ANSWER}<|im_end|>", FailureKind.NOT_JSON),  # still thinking
        (HYBRID, f"<think>\nOnly one turn.\n</think>\n\n{ANSWER}<|im_end|>", None),
        (HYBRID, f"Only one turn.\n</think>\n\n{ANSWER}<|im_end|>", FailureKind.NOT_JSON),  # no block was opened
        (None, f"{ANSWER}{END}", None),
    ],
)
def test_an_answer_is_read_behind_its_reasoning(template, said, expected):
    tokenizer = tokenizer_with(template)
    assert failures(tokenizer, tokenizer(said, add_special_tokens=False)["input_ids"]) == {expected}


def test_an_expert_teaches_what_is_read():
    for template in (ALWAYS, HYBRID, LLAMA, None):
        tokenizer = tokenizer_with(template)
        ids = encode_completion(tokenizer, ANSWER)
        assert failures(tokenizer, ids) == {None}
        assert decode_completion(tokenizer, ids).endswith(ANSWER)


def test_an_end_that_the_tokenizer_does_not_know_as_special_is_no_part_of_the_answer():
    """A config may end on any token."""
    tokenizer = tokenizer_with(None)
    tokenizer.add_tokens(["<stop>"])
    assert failures(tokenizer, tokenizer(f"{ANSWER}<stop>", add_special_tokens=False)["input_ids"]) == {None}


# options of a template


def test_an_option_is_heard_and_saved_and_a_caller_is_heard_before_it(tmp_path):
    """Whoever loads the folder renders as training did: vLLM's server and transformers read the same template."""
    tokenizer = tokenizer_with(f"\n{HYBRID}")
    plain = tokenizer.decode(encode_prompt(tokenizer, "A cat."))
    tokenizer.save_pretrained(tmp_path / "start")
    trained = load_tokenizer(str(tmp_path / "start"), {"enable_thinking": False})
    assert trained.decode(encode_prompt(trained, "A cat.")) == f"{plain}<think>\n\n</think>\n\n"
    trained.save_pretrained(tmp_path / "trained")
    served = AutoTokenizer.from_pretrained(tmp_path / "trained")
    assert encode_prompt(served, "A cat.") == encode_prompt(trained, "A cat.")
    message = [{"role": "user", "content": "A cat."}]
    asked = served.apply_chat_template(message, add_generation_prompt=True, tokenize=False, enable_thinking=True)
    assert asked == plain
    again = load_tokenizer(str(tmp_path / "trained"), {"enable_thinking": False})
    assert again.chat_template == trained.chat_template
    other = load_tokenizer(str(tmp_path / "trained"), {"enable_thinking": True})
    assert other.decode(encode_prompt(other, "A cat.")) == plain


@pytest.mark.parametrize(
    "value", [True, None, 3, 0.5, "say \"hi\" or 'ho' \n ü 😀 {{ x }}", [1, "a", None], {"a": [True]}]
)
def test_an_option_may_have_any_value(value):
    tokenizer = tokenizer_with("{{ option | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}")
    message = [{"role": "user", "content": "x"}]
    expected = tokenizer.apply_chat_template(message, tokenize=False, option=value)
    set_template_kwargs(tokenizer, {"option": value})
    assert tokenizer.apply_chat_template(message, tokenize=False) == expected


@pytest.mark.parametrize("start", ["{% set on = on if on is defined else true %}", "{% set on = on | default(true) %}"])
def test_an_option_may_have_a_default_in_the_template(start):
    tokenizer = tokenizer_with(start + "{{ 'on' if on else 'off' }}{{ messages[0].content }}")
    assert tokenizer.decode(encode_prompt(tokenizer, "!")) == "on!"
    set_template_kwargs(tokenizer, {"on": False})
    assert tokenizer.decode(encode_prompt(tokenizer, "!")) == "off!"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (HYBRID, r"never reads \['thinking'\]; it reads \['enable_thinking'\]"),
        (ALWAYS, r"never reads \['thinking'\]; it has no options"),
        ("{% set thinking = 1 %}" + ALWAYS, r"never reads \['thinking'\]"),
        ("{% if messages %}{% set thinking = 1 %}{% endif %}{{ thinking }}" + ALWAYS, r"never reads \['thinking'\]"),
        (None, r"no chat template that could read \['thinking'\]"),
    ],
)
def test_an_option_without_effect_is_refused(template, says):
    with pytest.raises(ConfigError, match=f"prompts.chat_template_kwargs: .*{says}"):
        set_template_kwargs(tokenizer_with(template), {"thinking": True})
    with pytest.raises(ConfigError, match="never reads|no chat template"):
        set_template_kwargs(tokenizer_with(template), {"messages": [], "bos_token": "x"})


def test_training_asks_as_its_config_says(tmp_path, monkeypatch):
    """SFT's samples, RL's prompts and what both save; a tiny model's template has no options."""
    tokenizer = tokenizer_with(HYBRID)
    sizes = TinyConfig(vocab_size=320, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=32)
    build_model(tokenizer, sizes, seed=1).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    monkeypatch.setattr(run_setup, "Embedder", lambda model: HashEmbedder())
    given = [f"out={tmp_path}/out", "model.dtype=float32", "prompts={template_set: compact, response_format: turns}"]
    given += ["prompts.chat_template_kwargs={enable_thinking: false}", "data.num_train=2", "data.num_held_out=1"]
    start = f"model.path={tmp_path}/start"
    config = load_config(SFTConfig, None, [*given, start, "max_length=4096"])
    parts = run_setup.setup_sft(config)
    for sequence in (each for tree in parts.trees for each in sequences_of(tree)):
        assert parts.tokenizer.decode(sequence.prompt_token_ids).endswith(NOT_THINKING)
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    assert load_config(SFTConfig, tmp_path / "config.yaml") == config
    more = ["engine=transformers", "sampling.max_tokens=9", "max_model_len=400", "loss.kl_coef=0"]
    collector = run_setup.setup_rl(load_config(RLConfig, None, [*given, start, *more])).collector
    prompt = collector.tokenizer.decode(encode_prompt(collector.tokenizer, "A cat."))
    assert prompt.endswith(NOT_THINKING)
    with pytest.raises(ConfigError, match=r"never reads \['enable_thinking'\]; it has no options"):
        run_setup.setup_sft(load_config(SFTConfig, None, given))


# requests to a server


def test_a_build_sends_the_options_with_every_request(tmp_path, monkeypatch):
    monkeypatch.setattr(options, "open_embedder", hash_embedder(tmp_path))
    data = ["dataset=custom", f"data={custom(tmp_path / 'talks.jsonl', THREE)}", f"out={tmp_path / 'd.db'}"]
    kwargs = "prompts.chat_template_kwargs={enable_thinking: false}"
    with FaultServer(answering(served)) as server:
        about = ["model.name=m", "model.provider=vllm", f"model.base_url={server.base_url}"]
        assert build([*data, *about, kwargs, "model.extra_body={min_p: 0.1}"]) == 0
        bodies = [request.body for request in server.requests]
    assert len(bodies) > 4
    assert all(body["chat_template_kwargs"] == {"enable_thinking": False} and body["min_p"] == 0.1 for body in bodies)


def test_an_evaluation_asks_the_builder_as_it_was_trained_and_nobody_else(tmp_path, monkeypatch):
    trained = RLConfig(prompts=PromptConfig(chat_template_kwargs={"enable_thinking": False}))
    (tmp_path / "config.yaml").write_text(dump(trained), encoding="utf-8")
    flags = ("--build-model", "policy", "--build-config", str(tmp_path / "config.yaml"), "--judge-provider", "vllm")
    with FaultServer(answering(reply)) as server:
        assert caller(tmp_path, monkeypatch)(server, "--system", "agents", "--model", "m", *flags) == 0
        sent = [(request.body["model"], request.body.get("chat_template_kwargs")) for request in server.requests]
    assert all((kwargs == {"enable_thinking": False}) == (model == "policy") for model, kwargs in sent)
    assert {model for model, kwargs in sent} > {"policy"}


def test_an_evaluation_tells_how_the_writer_thinks_and_of_a_budget_that_it_was_trained_with(
    tmp_path, monkeypatch, caplog
):
    trained = RLConfig(
        prompts=PromptConfig(chat_template_kwargs={"enable_thinking": True}),
        sampling=SamplingConfig(max_tokens=300, thinking_budget=40),
    )
    (tmp_path / "config.yaml").write_text(dump(trained), encoding="utf-8")
    flags = ("--system", "agents", "--model", "m", "--build-model", "policy", "--judge-provider", "vllm")
    flags += ("--build-config", str(tmp_path / "config.yaml"))
    call = caller(tmp_path, monkeypatch)
    with FaultServer(answering(reply)) as server:
        assert call(server, *flags) == 0
        assert "policy was trained with sampling.thinking_budget=40, and here nothing closes" in caplog.text
        caplog.clear()
        within = ("--build-endpoint", "extra_body.thinking_token_budget=40")
        assert call(server, *flags, *within, out="within") == 0
        assert "trained with" not in caplog.text
        sent = [each.body.get("thinking_token_budget") for each in server.requests if each.body["model"] == "policy"]
    assert set(sent) == {None, 40}
    ends = [(tmp_path / out / "table.md").read_text(encoding="utf-8").splitlines()[-1] for out in ("out", "within")]
    who = "Memories are written by policy (thinking on"
    reader = "questions are answered by m (thinking as it is served)."
    assert ends == [
        f"{who}; in training closed after 40 tokens); {reader}",
        f"{who}, closed after 40 tokens); {reader}",
    ]


def config_with(name: str = "m", **extra_body) -> BuildConfig:
    endpoint = ModelEndpoint(name=name, provider="vllm", extra_body=extra_body)
    return BuildConfig(
        out="x.db", model=endpoint, prompts=PromptConfig(chat_template_kwargs={"enable_thinking": False})
    )


def test_two_words_about_one_option_are_refused():
    agreeing = config_with(chat_template_kwargs={"enable_thinking": False, "more": 1}).chat(Keys()).endpoint.extra_body
    assert agreeing == {"chat_template_kwargs": {"enable_thinking": False, "more": 1}}
    with pytest.raises(ConfigError, match=r"differ in \['enable_thinking'\]"):
        config_with(chat_template_kwargs={"enable_thinking": True}).chat(Keys())
    with pytest.raises(ConfigError, match="must map names to values, not 'off'"):
        config_with(chat_template_kwargs="off").chat(Keys())
    with pytest.raises(ValueError, match="prompts.chat_template_kwargs .* rules have none"):
        config_with(name="rules")
