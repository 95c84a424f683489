"""Generation: the engines (vLLM in process, transformers) and the sampler of joint rollouts.

Token ids go in and token ids come out; text is never tokenised again on the way to the loss. `types.py` holds the records,
`sampler.py` asks every role of a scheme about a session. vllm is imported only in `vllm_engine.py`.
"""
