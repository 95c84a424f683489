"""What the README shows must work."""

import re
from pathlib import Path

import torch

from trainer.losses import LossConfig, LossInputs, resolve_loss

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_loss_of_the_readme_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my_loss.py").write_text(code, encoding="utf-8")
    loss = resolve_loss(f"{tmp_path / 'my_loss.py'}:sqrt_weighted")
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    inputs = LossInputs(
        trainer_logprobs=logprobs,
        entropy=torch.zeros(2),
        behaviour_logprobs=logprobs.detach(),
        rollout_logprobs=logprobs.detach(),
        ref_logprobs=None,
        advantage=torch.tensor([1.0, -0.5]),
        weight=torch.tensor([4.0, 1.0]),
        truncated=torch.zeros(2),
        sequence=torch.tensor([0, 0]),
    )
    per_token, _ = loss(inputs, LossConfig(kl_coef=0))
    assert per_token.tolist() == [-2.0, 0.5]  # -sqrt(4) * 1 and -sqrt(1) * -0.5


def test_every_path_the_readme_names_exists():
    root = Path(__file__).parent.parent
    for path in re.findall(r"(?:configs|launch|tests)/[\w/.]+\.(?:yaml|sh|json|md)", README):
        assert (root / path).is_file(), path
    assert "@@" not in README
