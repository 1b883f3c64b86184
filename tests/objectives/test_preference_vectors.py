"""Agreement with TRL 1.16's own code of DPO, CPO, SimPO, ORPO and KTO, and with verl's KL controller."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.objectives import cpo, dpo, kto, orpo, simpo
from rl_jax.objectives.base import Inputs
from rl_jax.ops import controllers
from tests.systems import assert_agrees, value_and_gradient

pytestmark = pytest.mark.usefixtures("x64")
DATA = json.loads((Path(__file__).parents[1] / "data" / "preferences.json").read_text())
NAMES = {"exo_pair": "exo", "nca_pair": "nca", "bco_pair": "bco", "sppo_hard": "sppo", "sigmoid_norm": "sigmoid"}


OTHERS = {
  "cpo": cpo.objective(beta=DATA["beta"], nll_coef=0.0),
  "simpo": simpo.objective(beta=DATA["beta"], gamma=0.5),
  "orpo": orpo.objective(beta=DATA["beta"]),
  "kto": kto.objective(beta=DATA["beta"], undesirable_weight=1.5),
}


def name_of(case):
  return f"{case['loss']}-{case['divergence']}-{case['tail']}"


@pytest.mark.parametrize("case", DATA["cases"], ids=name_of)
def test_every_loss_of_the_family_is_trls(case):
  loss = NAMES.get(case["loss"], case["loss"])
  smoothed = case["loss"] in ("exo_pair", "robust", "aot")  # TRL smooths no others
  objective = dpo.objective(
    loss=loss,
    beta=DATA["beta"],
    label_smoothing=DATA["label_smoothing"] if smoothed else 0.0,
    divergence=case["divergence"].removesuffix("_divergence"),
    length_normalized=case["loss"] in ("ipo", "sigmoid_norm"),
    tail_weight=1.0 if case["tail"] is None else case["tail"],
  )
  arrays = {name: jnp.asarray(DATA[name]) for name in ("mask", "logp", "ref_logp")}
  inputs = Inputs(arrays["mask"], ref_logp=arrays["ref_logp"], batch_logp=arrays["logp"])
  value, gradient = value_and_gradient(objective, inputs, logp=arrays["logp"])
  tolerance = 1e-6 if case["loss"] == "exo_pair" else 1e-12  # there TRL's smoothing is in float32
  assert_agrees(value, case["value"], tolerance)
  assert_agrees(gradient, np.asarray(case["gradient"]), tolerance)


@pytest.mark.parametrize("case", DATA["others"], ids=lambda case: case["loss"])
def test_preference_losses_of_other_names_are_trls(case):
  arrays = {name: jnp.asarray(DATA[name]) for name in ("mask", "logp", "ref_logp")}
  shape = arrays["mask"].shape
  sides = jnp.broadcast_to(jnp.array([1.0, -1.0])[:, None], shape)  # chosen answers are desirable
  inputs = Inputs(
    arrays["mask"],
    ref_logp=arrays["ref_logp"],
    advantages=sides,
    kl_baseline=jnp.asarray(DATA["kl_baseline"]).reshape(shape[:-1]),
  )
  value, gradient = value_and_gradient(OTHERS[case["loss"]], inputs, logp=arrays["logp"])
  tolerance = 1e-6 if case["loss"] == "orpo" else 1e-12  # TRL's odds are in float32
  assert_agrees(value, case["value"], tolerance)
  assert_agrees(gradient, np.asarray(case["gradient"]), tolerance)


@pytest.mark.parametrize("step", DATA["controller"], ids=lambda step: str(step["kl"]))
def test_the_adaptive_controller_is_verls(step):
  given = dict(target=6.0, horizon=1000, samples=step["samples"])
  coef = controllers.adaptive_kl(jnp.array(0.2), jnp.array(step["kl"]), **given)
  np.testing.assert_allclose(coef, step["coef"], rtol=1e-12)
