"""A policy small enough to train from scratch on a laptop CPU: Qwen3 architecture, its own tokenizer.

The tokenizer is byte-level BPE, so any text survives a round trip. Turn numbers and the pieces of an answer are tokens
of their own: a turn's number in the prompt and in the answer are the same token, which one attention head can match.
"""

from collections.abc import Iterable, Sequence

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from membuilder.errors import ConfigError
from trainer.configs import TinyConfig

PAD, END = "<pad>", "<end>"
CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}{% if not loop.last %}\n{% endif %}{% endfor %}"
"""The texts of the messages and nothing else, so that a server asks the model what training asked it."""


def train_tokenizer(texts: Iterable[str], added: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on `texts`; each string of `added` is a token of its own (`Scheme.tiny_tokens`).

    Raises ConfigError where these, the bytes and the control tokens are more than `vocab_size`.
    """
    alphabet, control = pre_tokenizers.ByteLevel.alphabet(), [PAD, END]
    least = len(alphabet) + len(control) + len(added)
    if vocab_size < least:
        raise ConfigError(
            f"vocab_size={vocab_size} of the tiny model has no room for {len(added)} tokens of the scheme, one of them "
            f"for every turn number of the longest session: set {least} or more, or read long sessions in windows "
            "(data.max_turns)"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added),
        special_tokens=control,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # longest first, so that "#12" is never read as "#1" and "2"
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in sorted(added, key=len, reverse=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, chat_template=CHAT_TEMPLATE
    )


def build_model(tokenizer: PreTrainedTokenizerFast, config: TinyConfig, seed: int) -> Qwen3ForCausalLM:
    """Return a Qwen3 of these sizes with random weights."""
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
