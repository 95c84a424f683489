"""A policy small enough to train from scratch on a laptop CPU: Qwen3 architecture, its own tokenizer.

Real runs name a model instead. The tokenizer is byte-level BPE, so any text survives a round trip. Turn numbers and
the pieces of the per-turn answer are tokens of their own: the number after a turn in the prompt and the same number in
the answer are the same token, which one attention head can match.
"""

from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from membuilder.types import Agent
from trainer.configs import TinyConfig

PAD, END = "<pad>", "<end>"


def answer_tokens(max_turns: int, max_shown: int = 20) -> list[str]:
    """Strings that get a token of their own: turn numbers, agent tags and the pieces between numbers in an answer."""
    decisions = ["add", *(f"e{label}" for label in range(1, max_shown + 1))]
    pieces = ['{"', "{}", *(f'":"{decision}{end}' for decision in decisions for end in ('","', '"}'))]
    return [*(f"#{number}" for number in range(1, max_turns + 1)), *(f"[{agent}]\n" for agent in Agent), *pieces]


def train_tokenizer(texts: Iterable[str], max_turns: int, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `texts`; turn numbers up to `max_turns` are one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    added = answer_tokens(max_turns)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added),
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # longest first, so that "#12" is never read as "#1" and "2"
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in sorted(added, key=len, reverse=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def build_model(tokenizer: PreTrainedTokenizerFast, config: TinyConfig, seed: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    model_config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        # transformers' 0.02 suits widths of thousands; at this width it starves every layer of signal
        initializer_range=config.hidden_size**-0.5,
    )
    return Qwen3ForCausalLM(model_config)
