"""The policy: a transformers model whose head never holds whole logits and whose shared prompts run once."""
