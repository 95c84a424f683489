"""Prints what the real vLLM samples and which experts it reports, as JSON (tests/test_routed_experts.py starts this).

vLLM reports experts by its second model runner alone, which needs Triton, and Triton has no compiler for this CPU. Its
interpreter does: vLLM's own check is told that there is a backend.
"""

import json
import os
import sys
from base64 import b64encode
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "1"
import triton.backends

triton.backends.backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)

from rollout.types import SamplingConfig  # noqa: E402  (vLLM must see what stands above)
from rollout.vllm_engine import VLLMEngine  # noqa: E402

folder, prompts = sys.argv[1], json.loads(sys.argv[2])
engine = VLLMEngine(folder, max_model_len=200, seed=0, dtype="float32", routed_experts=True)
plain = SamplingConfig(temperature=1.0, top_p=1.0, max_tokens=8)
rounds = [engine.generate(prompts, 2, plain, seed=1)]
# what load_weights does to the cache; vLLM's CPU build gives other log-probs once a mixture's weights are reloaded
assert engine._llm.reset_prefix_cache()
rounds.append(engine.generate(prompts, 2, plain, seed=1))
engine.close()
print(
    json.dumps(
        [
            {
                "prompt": prompt,
                "ids": each.token_ids,
                "logprobs": each.rollout_logprobs,
                "shape": each.routed_experts.array().shape,
                "experts": b64encode(each.routed_experts.data).decode(),
            }
            for groups in rounds
            for prompt, group in zip(prompts, groups, strict=True)
            for each in group
        ]
    )
)
