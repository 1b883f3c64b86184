"""Makes tests/data/preferences.json: losses and gradients of TRL's own DPO code, and steps of verl's KL controller.

    python3.11 -m venv /tmp/torch && /tmp/torch/bin/pip install torch==2.13.0 numpy
    /tmp/torch/bin/pip download --no-deps trl==1.16.0 verl==0.9.1 --dest /tmp/wheels
    /tmp/torch/bin/python tests/data/make_preferences.py /tmp/wheels

The functions are cut out of the wheels' files and run as they are, without the packages around them. The tests read the
result and need neither.
"""

import ast
import json
import math
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

OUT = Path(__file__).parent / "preferences.json"
LOSSES = ("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "apo_zero",
          "apo_down", "discopop", "sigmoid_norm")  # fmt: skip
DIVERGENCES = ("forward_kl", "js_divergence")
PAIRS, TOKENS = 3, 5


def cut(folder: Path, wheel: str, file: str, kind: type, name: str) -> ast.AST:
  """A function or class of a file in a wheel."""
  path = next(folder.glob(f"{wheel}-*.whl"))
  tree = ast.parse(zipfile.ZipFile(path).read(file))
  return next(node for node in ast.walk(tree) if isinstance(node, kind) and node.name == name)


def run(node: ast.AST, **names: object) -> dict:
  scope = {"torch": torch, "F": F, "math": math, "np": np, **names}
  exec(compile(ast.fix_missing_locations(ast.Module([node], [])), "cut", "exec"), scope)
  return scope


def trl_loss(folder: Path):
  """`DPOTrainer._compute_loss` up to the loss, without the metrics behind it."""
  node = cut(folder, "trl", "trl/trainer/dpo_trainer.py", ast.FunctionDef, "_compute_loss")
  loop = next(i for i, each in enumerate(node.body) if isinstance(each, ast.For))
  node.body = [*node.body[: loop + 1], ast.parse("return loss").body[0]]
  names = dict(is_peft_model=lambda model: False, disable_gradient_checkpointing=lambda *_: nullcontext())
  return run(node, **names)["_compute_loss"]


def main(folder: Path) -> None:
  rng = np.random.default_rng(0)
  logp, ref = -rng.exponential(1.0, (2, PAIRS, 2, TOKENS))
  lengths = np.array([[5, 2], [3, 4], [1, 5]])
  mask = (np.arange(TOKENS) < lengths[..., None]).astype(np.int64)
  compute, cases = trl_loss(folder), []

  def model(log_probs: torch.Tensor):
    return lambda **_: SimpleNamespace(log_probs=log_probs)

  def rows(x: np.ndarray) -> torch.Tensor:  # TRL stacks all chosen sequences on all rejected ones
    return torch.tensor(np.concatenate([x[:, 0], x[:, 1]]))

  for loss, divergence in [*((name, "reverse_kl") for name in LOSSES), *(("sigmoid", name) for name in DIVERGENCES)]:
    for tail in (None, 0.5):
      given = rows(logp * mask).requires_grad_()
      trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=SimpleNamespace(device="cpu"), aux_loss_enabled=False,
        ld_alpha=tail, precompute_ref_logps=False, ref_model=model(rows(ref * mask)),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05), f_divergence_type=divergence,
        loss_types=[loss], loss_weights=[1.0], beta=0.3, label_smoothing=0.1, use_weighting=False,
      )  # fmt: skip
      # Its first column is the token that predicts the first completion token.
      completion = torch.cat([torch.zeros(2 * PAIRS, 1, dtype=torch.int64), rows(mask)], dim=1)
      value = compute(trainer, model(given), {"completion_mask": completion, "input_ids": completion}, False)
      (gradient,) = torch.autograd.grad(value, given)
      by_pair = gradient.reshape(2, PAIRS, TOKENS).transpose(0, 1).numpy() * mask
      settings = {"loss": loss, "divergence": divergence, "tail": tail}
      cases.append({**settings, "value": value.item(), "gradient": by_pair.tolist()})

  controller = run(cut(folder, "verl", "verl/trainer/ppo/core_algos.py", ast.ClassDef, "AdaptiveKLController"))
  steps = []
  for kl, samples in ((9.0, 64), (6.3, 64), (2.0, 128), (6.0, 32)):
    each = controller["AdaptiveKLController"](0.2, target_kl=6.0, horizon=1000)
    each.update(kl, samples)
    steps.append({"kl": kl, "samples": samples, "coef": float(each.value)})
  data = {"beta": 0.3, "label_smoothing": 0.1, "logp": logp.tolist(), "ref_logp": ref.tolist(), "mask": mask.tolist(),
          "cases": cases, "controller": steps}  # fmt: skip
  OUT.write_text(json.dumps(data) + "\n")


if __name__ == "__main__":
  main(Path(sys.argv[1]))
