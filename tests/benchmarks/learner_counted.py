"""What each way of learning from a group runs, copies and keeps, counted from the shapes in its code: nothing is timed.

    python -m tests.benchmarks.learner --counted --out tests/benchmarks/results/learner_counted.json

shared          ours (trainer/batching/packing.py, trainer/model/merged_attention.py)
trl_tree        `AsyncGRPOTrainer` of TRL 1.16: packing.py, kernels/chunked_logprob.py
prefix_grouper  PrefixGrouper 0.0.1.post1, by its README: one prefix for each prompt, logits of every token
trl, verl       `GRPOTrainer` of TRL 1.16 and FSDP workers of verl 0.9.1 as they come: dense copies
dense           dense copies with our head
All answers of a session have one length, so nothing is padded. tests/test_learner_counted.py holds the counts to what
the packages do on a CPU; verl's it cannot. TRL's heads are counted as on CUDA: on a CPU they score every position.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.benchmarks.learner_models import SIZES, layer_weights

BYTES = 2
"""Of a number in bfloat16."""
ATTENTION_PRODUCTS = 2 + 5
"""Of flash attention in forward and backward, which makes the scores again."""


@dataclass(frozen=True)
class Session:
    """Agents whose prompts begin with the same tokens, and rollouts of each that part at once."""

    agents: int
    """One has no tokens of its own: all its prompt is shared."""
    shared: int
    """Tokens that the prompts of all agents begin with."""
    own: int
    """Tokens of each agent's prompt behind them."""
    rollouts: int
    """At least two."""
    response: int
    """Tokens of each answer, at least two."""

    @property
    def prompt(self) -> int:
        return self.shared + self.own

    @property
    def answers(self) -> int:
        return self.agents * self.rollouts


@dataclass(frozen=True)
class Count:
    tokens: int
    """Tokens that run through the layers."""
    pairs: int
    """Pairs of a query and a key that it sees."""
    attention_calls: int
    """Calls of the attention kernel in a layer's forward."""
    copied_keys: int
    """Rows of keys, and as many of values, that a layer's forward writes beyond its projections."""
    kept_keys: int
    """Rows of keys, and as many of values, that a layer keeps for its backward."""
    key_gradients: int
    """Rows of gradients of keys that the kernel's backward writes, before those of one token are added up."""
    head_rows: int
    head_products: int


def _sees(queries: int, before: int) -> int:
    """Return the pairs of a run of tokens, each of which sees those `before` the run, the run up to it and itself."""
    return queries * before + queries * (queries + 1) // 2


def shared(s: Session) -> Count:
    """Count ours: a level of the tree for the shared tokens, the agents' own and the answers; no key is copied."""
    widths = [(1, s.shared), (s.agents, s.own), (s.answers, s.response - 1)]
    levels = [(nodes, length) for nodes, length in widths if length]
    tokens = [nodes * length for nodes, length in levels]
    before = [sum(length for _, length in levels[:depth]) for depth in range(len(levels))]
    return Count(
        tokens=sum(tokens),
        pairs=sum(nodes * _sees(length, above) for (nodes, length), above in zip(levels, before, strict=True)),
        attention_calls=len(levels) * (len(levels) + 1) // 2,
        copied_keys=0,
        kept_keys=sum(tokens),
        key_gradients=sum(sum(tokens[: depth + 1]) for depth in range(len(tokens))),
        head_rows=s.answers * s.response,
        head_products=3,
    )


def trl_tree(s: Session) -> Count:
    """Count TRL's trie: it parts one token before the sequences do, and each segment copies the keys of its path."""
    nested = s.agents > 1
    trunk = s.shared - 1 if nested else 0
    paths = [(nested, trunk, trunk), (s.agents, s.prompt - 1 - trunk, s.prompt - 1)]
    paths.append((s.answers, s.response + 1, s.prompt + s.response))
    copied = sum(segments * path for segments, _, path in paths)
    return Count(
        tokens=sum(segments * length for segments, length, _ in paths),
        pairs=sum(segments * _sees(length, path - length) for segments, length, path in paths),
        attention_calls=1,
        copied_keys=copied,
        kept_keys=copied,
        key_gradients=copied,
        head_rows=s.answers * s.response,
        head_products=4,
    )


def prefix_grouper(s: Session) -> Count:
    """Count PrefixGrouper: keys are taken apart, the prefix's repeated for each answer and joined with its own."""
    prefixes, answers = s.agents * s.prompt, s.answers * s.response
    joined = s.answers * (s.prompt + s.response)
    tokens = prefixes + answers
    return Count(
        tokens=tokens,
        pairs=s.agents * _sees(s.prompt, 0) + s.answers * _sees(s.response, s.prompt),
        attention_calls=2,
        copied_keys=tokens + s.answers * s.prompt + joined,
        kept_keys=prefixes + joined,
        key_gradients=prefixes + joined,
        head_rows=tokens,
        head_products=3,
    )


def _copies(s: Session, length: int, head_rows: int, head_products: int) -> Count:
    tokens = s.answers * length
    return Count(
        tokens=tokens,
        pairs=s.answers * _sees(length, 0),
        attention_calls=1,
        copied_keys=0,
        kept_keys=tokens,
        key_gradients=tokens,
        head_rows=head_rows,
        head_products=head_products,
    )


def dense(s: Session) -> Count:
    return _copies(s, s.prompt + s.response - 1, s.answers * s.response, 3)


def trl(s: Session) -> Count:
    return _copies(s, s.prompt + s.response, s.answers * s.response, 4)


def verl(s: Session) -> Count:
    """Count verl without padding and without its fused head: logits of every token, prompts too."""
    length = s.prompt + s.response
    return _copies(s, length, s.answers * length, 3)


WAYS: dict[str, Callable[[Session], Count]] = {
    each.__name__: each for each in (shared, trl_tree, prefix_grouper, trl, verl, dense)
}
NOTES = {
    "verl": "counted only: verl 0.9.1 asks for Ray and transformers below 5.11. It has a forward with PrefixGrouper "
    "(trainer/ppo/prefix_grouper_utils.py), but no worker calls it; `use_prefix_grouper` balances by groups. With "
    "`use_fused_kernels` its head makes 4 products.",
}
SESSIONS = (
    Session(agents=1, shared=6144, own=0, rollouts=8, response=512),
    Session(agents=4, shared=4096, own=2048, rollouts=8, response=512),
)
MODEL = "4b"


def flops(count: Count, sizes: dict[str, int]) -> dict[str, int]:
    """Return the FLOPs of the matrix products of forward and backward, activations kept."""
    layers, heads = sizes["num_hidden_layers"], sizes["num_attention_heads"] * sizes["head_dim"]
    head = 2 * count.head_products * count.head_rows * sizes["hidden_size"] * sizes["vocab_size"]
    return {
        "linear": 6 * layers * layer_weights(sizes) * count.tokens,
        "attention": 2 * ATTENTION_PRODUCTS * layers * heads * count.pairs,
        "head": head,
    }


def rows() -> Iterator[dict]:
    """Yield what is counted of every way, in a model of Qwen3-4B's size in bfloat16."""
    sizes = SIZES[MODEL]
    layer_bytes = 2 * BYTES * sizes["num_key_value_heads"] * sizes["head_dim"]  # a key and a value of a token
    for session in SESSIONS:
        for way, count_of in WAYS.items():
            count = count_of(session)
            products = flops(count, sizes)
            yield {
                "impl": way,
                "kind": "counted",
                "model": MODEL,
                **vars(session),
                **vars(count),
                "kept_keys_and_values_mb": round(count.kept_keys * layer_bytes * sizes["num_hidden_layers"] / 1e6),
                "copied_keys_and_values_mb_of_a_layer": round(count.copied_keys * layer_bytes / 1e6),
                **{f"{name}_tflop": round(each / 1e12, 1) for name, each in products.items()},
                "tflop": round(sum(products.values()) / 1e12, 1),
                **({"note": NOTES[way]} if way in NOTES else {}),
            }
