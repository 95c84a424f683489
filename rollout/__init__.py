"""Generation: the engines (vLLM in process, transformers) and the sampler of joint rollouts.

Token ids go in and token ids come out; text is never tokenised again on the way to the loss.
"""
