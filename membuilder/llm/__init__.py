"""Any OpenAI-compatible endpoint: one client, retries, costs, a cache of responses, reading JSON, answering and judging.

`client.py` is the only file that imports openai. What a server refuses is told apart from what a model answers badly:
start at `client.py` and `responses.py`.
"""
