"""Makes tests/data/preferences.json: losses and gradients of TRL's own code, and steps of verl's KL controller.

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
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

OUT = Path(__file__).parent / "preferences.json"
LOSSES = (
  "sigmoid",
  "hinge",
  "ipo",
  "exo_pair",
  "nca_pair",
  "robust",
  "bco_pair",
  "sppo_hard",
  "aot",
  "apo_zero",
  "apo_down",
  "discopop",
  "sigmoid_norm",
)
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


def trl_loss(folder: Path, trainer: str, is_last: Callable[[ast.stmt], bool], result: str):
  """A trainer's `_compute_loss` up to a statement, without the metrics behind it."""
  node = cut(folder, "trl", f"trl/trainer/{trainer}_trainer.py", ast.FunctionDef, "_compute_loss")
  last = next(i for i, each in enumerate(node.body) if is_last(each))
  node.body = [*node.body[: last + 1], ast.parse(f"return {result}").body[0]]
  names = dict(is_peft_model=lambda model: False, disable_gradient_checkpointing=lambda *_: nullcontext())
  return run(node, **names)["_compute_loss"]


def alone(folder: Path, logp: torch.Tensor, ref: torch.Tensor, mask: torch.Tensor, kl: torch.Tensor) -> dict:
  """Losses by name, as functions without arguments, that are no part of TRL's DPO.

  Log-probs and mask are `[pairs, 2, tokens]`; `kl` has the log-ratios of KTO's baseline, one an answer.
  """
  cpo = run(cut(folder, "trl", "trl/experimental/cpo/cpo_trainer.py", ast.FunctionDef, "cpo_loss"))["cpo_loss"]
  file = "trl/experimental/orpo/orpo_trainer.py"
  log1mexp = run(cut(folder, "trl", file, ast.FunctionDef, "log1mexp"))["log1mexp"]
  orpo = run(cut(folder, "trl", file, ast.FunctionDef, "odds_ratio_loss"), log1mexp=log1mexp)["odds_ratio_loss"]
  of_answers = trl_loss(folder, "kto", lambda each: ast.unparse(each).startswith("losses ="), "losses")
  here = SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x)
  trainer = SimpleNamespace(
    alpha=0.0,
    accelerator=here,
    beta=0.3,
    label_smoothing=0.0,
    simpo_gamma=0.5,
    desirable_weight=1.0,
    undesirable_weight=1.5,
  )
  totals, counts = (logp * mask).sum(-1), mask.sum(-1)
  means = totals / counts

  def kto() -> torch.Tensor:
    def model(log_probs: torch.Tensor):
      return lambda **_: SimpleNamespace(log_probs=log_probs.reshape(2 * PAIRS, TOKENS))

    ids = torch.zeros(2 * PAIRS, TOKENS + 1, dtype=torch.int64)
    batch = {"label": torch.tensor([True, False] * PAIRS), "input_ids": ids, "completion_mask": ids}
    policy, reference = model(logp * mask), model(ref * mask)
    given = SimpleNamespace(
      **vars(trainer),
      model=SimpleNamespace(training=True),
      aux_loss_enabled=False,
      precompute_ref_logps=False,
      ref_model=reference,
      calculate_KL=True,
      loss_type="kto",
      args=SimpleNamespace(gradient_checkpointing_kwargs=None),
      _metrics={"train": {"kl": []}},
      _compute_kl_logps=lambda model, batch: kl if model is policy else torch.zeros_like(kl),
    )
    return of_answers(given, policy, batch, False).mean()

  def of_pairs(loss_type: str, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    return cpo(SimpleNamespace(**vars(trainer), loss_type=loss_type), chosen, rejected)[0].mean()

  return {
    "cpo": lambda: of_pairs("sigmoid", totals[:, 0], totals[:, 1]),
    "simpo": lambda: of_pairs("simpo", means[:, 0], means[:, 1]),
    # TRL's likelihood term includes the prompt; this one is the paper's.
    "orpo": lambda: -means[:, 0].mean() - orpo(trainer, means[:, 0], means[:, 1])[0].mean(),
    "kto": kto,
  }


def main(folder: Path) -> None:
  rng = np.random.default_rng(0)
  logp, ref = -rng.exponential(1.0, (2, PAIRS, 2, TOKENS))
  lengths = np.array([[5, 2], [3, 4], [1, 5]])
  mask = (np.arange(TOKENS) < lengths[..., None]).astype(np.int64)
  compute, cases, others = trl_loss(folder, "dpo", lambda each: isinstance(each, ast.For), "loss"), [], []

  def model(log_probs: torch.Tensor):
    return lambda **_: SimpleNamespace(log_probs=log_probs)

  def rows(x: np.ndarray) -> torch.Tensor:  # TRL stacks all chosen sequences on all rejected ones
    return torch.tensor(np.concatenate([x[:, 0], x[:, 1]]))

  for loss, divergence in [*((name, "reverse_kl") for name in LOSSES), *(("sigmoid", name) for name in DIVERGENCES)]:
    for tail in (None, 0.5):
      given = rows(logp * mask).requires_grad_()
      trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu"),
        aux_loss_enabled=False,
        ld_alpha=tail,
        precompute_ref_logps=False,
        ref_model=model(rows(ref * mask)),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05),
        f_divergence_type=divergence,
        loss_types=[loss],
        loss_weights=[1.0],
        beta=0.3,
        label_smoothing=0.1,
        use_weighting=False,
      )
      # Its first column is the token that predicts the first completion token.
      completion = torch.cat([torch.zeros(2 * PAIRS, 1, dtype=torch.int64), rows(mask)], dim=1)
      value = compute(trainer, model(given), {"completion_mask": completion, "input_ids": completion}, False)
      (gradient,) = torch.autograd.grad(value, given)
      by_pair = gradient.reshape(2, PAIRS, TOKENS).transpose(0, 1).numpy() * mask
      settings = {"loss": loss, "divergence": divergence, "tail": tail}
      cases.append({**settings, "value": value.item(), "gradient": by_pair.tolist()})

  whole, baseline = torch.tensor(logp).requires_grad_(), rng.normal(0.4, 1.0, 2 * PAIRS)
  losses = alone(folder, whole, torch.tensor(ref), torch.tensor(mask), torch.tensor(baseline))
  for name, loss_of in losses.items():
    value = loss_of()
    (gradient,) = torch.autograd.grad(value, whole, retain_graph=True)
    others.append({"loss": name, "value": value.item(), "gradient": gradient.tolist()})

  controller = run(cut(folder, "verl", "verl/trainer/ppo/core_algos.py", ast.ClassDef, "AdaptiveKLController"))
  steps = []
  for kl, samples in ((9.0, 64), (6.3, 64), (2.0, 128), (6.0, 32)):
    each = controller["AdaptiveKLController"](0.2, target_kl=6.0, horizon=1000)
    each.update(kl, samples)
    steps.append({"kl": kl, "samples": samples, "coef": float(each.value)})
  data = {
    "beta": 0.3,
    "label_smoothing": 0.1,
    "logp": logp.tolist(),
    "ref_logp": ref.tolist(),
    "mask": mask.tolist(),
    "kl_baseline": baseline.tolist(),
    "cases": cases,
    "others": others,
    "controller": steps,
  }
  OUT.write_text(json.dumps(data) + "\n")


if __name__ == "__main__":
  main(Path(sys.argv[1]))
