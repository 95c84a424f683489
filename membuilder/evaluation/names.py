"""The names of systems and of the folders and defaults that belong to them."""

RETRIEVERS = tuple(f"rag-{unit}{method}" for unit in ("turn", "session") for method in ("", "-bm25", "-hybrid"))
"""Search by embeddings unless the name says otherwise."""
AGENTS = "agents"
"""The memory of a scheme, whose answers --build-model writes: any model, a trained checkpoint among them."""
RULES = "rules"
"""The memory of a scheme's offline expert."""
BUILDERS = (RULES, AGENTS)
STORED = "bank"
"""Banks that another run, or another program, left at --db-path."""
ALL_LINES, RANDOM_LINES = "all", "random"
"""Every line of a dialogue as an entry, or as many random ones as fit the tokens that the rules stored."""
BANKS = (*BUILDERS, STORED, ALL_LINES, RANDOM_LINES)
"""Systems whose memory is a bank, which a reader may search itself."""
LONG_CONTEXT, BEST_CHUNKS = "long-context", "bm25"
RUNNING = ("memagent", "memagent-blind", "mem1", "mem1-blind")
"""Systems whose memory is one text that --build-model rewrites chunk after chunk; the blind ones see no question."""
WRITERS = (AGENTS, *RUNNING)
"""Systems that need a model to write their memory."""
SYSTEMS = (
    *(*BUILDERS, ALL_LINES, RANDOM_LINES, "full-context", LONG_CONTEXT, BEST_CHUNKS),
    *(*RETRIEVERS, *RUNNING, "none", STORED),
)
AUTO, MEMORIES = "auto", "memories"
"""Default of --db-path, and the folder under --output-dir that it means."""
INSTANCES = ("memalpha", "memoryagentbench")
"""Datasets whose instances come from sources with a metric each."""
CONTEXT_TOKENS, CHUNKS, ROUNDS = 30_000, 2, 5
"""What --context-tokens, --chunks and --agentic-search are where nothing else is said: as published."""
