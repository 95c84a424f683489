"""Sequences run as dense copies, by a model's own attention: what every architecture of transformers can do.

Each sequence brings its whole prompt, as in trainers that do not share prompts. Letters: B sequences, L the longest of
them, M completion tokens.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from trainer.batching.expert_rows import expert_rows
from trainer.batching.packing import PackedBatch, TrainSequence


def hidden_states(model: PreTrainedModel, sequences: Sequence[TrainSequence]) -> torch.Tensor:
    """Return (M, hidden), the last hidden states that predict the completions, one sequence after another."""
    ids, predict_from = _padded(sequences, model.device)
    output = model.base_model(input_ids=ids, use_cache=False)
    return output.last_hidden_state.flatten(0, 1)[predict_from]


def expert_rows_of(batch: PackedBatch) -> torch.Tensor | None:
    """Return the experts that an engine chose for a batch's tokens (B L, layers, k), as `hidden_states` runs them."""
    if batch.experts is None:
        return None
    lengths = [len(each.input_token_ids) for each in batch.sequences]
    longest = max(lengths)
    places = [range(number * longest, number * longest + length) for number, length in enumerate(lengths)]
    parts = [each.routed_experts for each in batch.sequences]
    return expert_rows(parts, places, longest * len(lengths)).to(batch.experts.device)


@torch.no_grad()
def own_logprobs(model: PreTrainedModel, sequences: Sequence[TrainSequence]) -> torch.Tensor:
    """Return the log-probs (M,) of the completions, in float32, as the model's own forward and head give them."""
    ids, predict_from = _padded(sequences, model.device)
    logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)[predict_from]
    targets = torch.tensor([token for each in sequences for token in each.completion_token_ids], device=model.device)
    return logits.float().log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


def _padded(sequences: Sequence[TrainSequence], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids (B, L), padded on the right, and M indices into all B x L rows.

    No real token looks to its right, so no mask is needed. One would hide all that a padded token sees in a sliding
    window, and transformers' eager attention makes NaN of that, in real tokens too.
    """
    rows = [(*each.prompt_token_ids, *each.completion_token_ids[:-1]) for each in sequences]
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    predict_from: list[int] = []
    for number, (row, sequence) in enumerate(zip(rows, sequences, strict=True)):
        ids[number, : len(row)] = torch.tensor(row)
        end = number * longest + len(row)
        predict_from += range(end - len(sequence.completion_token_ids), end)
    return ids.to(device), torch.tensor(predict_from, device=device)
