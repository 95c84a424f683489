"""vLLM on CUDA gives its memory back while the policy learns, and answers as before once it has weights again."""

import pytest
import torch

from rollout.types import SamplingConfig
from trainer.configs import TinyConfig
from trainer.model.tiny_model import build_model, train_tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
pytest.importorskip("vllm", reason="vLLM is not installed (launch/setup.sh cuda)")


def test_a_resting_engine_frees_memory_and_wakes_with_the_new_weights(tmp_path):
    from membuilder.errors import MemBuilderError
    from rollout.vllm_engine import VLLMEngine  # here, because it takes many seconds to import

    sizes = TinyConfig(
        vocab_size=600, hidden_size=256, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=512
    )
    tokenizer = train_tokenizer(["Ann: I adopted a cat called Miso. #1"] * 5, ["#1"], sizes.vocab_size)
    model = build_model(tokenizer, sizes, seed=1)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = VLLMEngine(tmp_path, max_model_len=512, seed=0, gpu_memory_utilization=0.3, dtype="bfloat16", sleep=True)
    try:
        greedy = SamplingConfig(temperature=0.0, top_p=1.0, max_tokens=8)
        before = engine.generate([[5, 6, 7]], 1, greedy, seed=0)[0][0].token_ids
        awake = torch.cuda.mem_get_info()[0]
        engine.sleep()
        assert torch.cuda.mem_get_info()[0] - awake > 0.2 * torch.cuda.mem_get_info()[1]  # most of the share is cache
        with pytest.raises(MemBuilderError, match="asleep"):
            engine.generate([[5, 6, 7]], 1, greedy, seed=0)
        weights = [(name, tensor.detach().cuda().bfloat16()) for name, tensor in model.state_dict().items()]
        engine.load_weights(weights, version=1)
        assert engine.generate([[5, 6, 7]], 1, greedy, seed=0)[0][0].token_ids == before
    finally:
        engine.close()
