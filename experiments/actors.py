"""What the scripts put together from models: actor and critic as functions of one dict of parameters, reward models."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rl_jax.models import heads, lora, presets
from rl_jax.train.score import Scores, Sequences, make_last_value, make_score, make_values


class RewardModel(NamedTuple):
  """A reward model's functions and parameters."""

  model: heads.ScalarModel
  params: Any


def load_reward_model(folder: str, tokenizer: Any) -> RewardModel:
  """Loads what experiments.reward_model wrote.

  Raises:
    ValueError: If there is no such model, or its tokenizer is another one than the policy's.
  """
  backbone = presets.load(folder)
  if backbone.tokenizer.get_vocab() != tokenizer.get_vocab():
    raise ValueError(f"reward model {folder!r} has another tokenizer than the policy: it reads the policy's tokens")
  width = backbone.config.embed_dim
  params = {"backbone": backbone.params, "head": heads.load_head(folder, width)}
  return RewardModel(heads.scalar_model(backbone.policy, width), params)


class Parts(NamedTuple):
  """What is trained together, as functions of one dict of parameters.

  Attributes:
    policy: `params -> the policy's own parameters`, adapters merged.
    score: `(params, sequences) -> Scores`, with values where there is a critic.
    values: `(params, sequences) -> [P, G, T]` of a critic apart from the policy; None for others.
    last_value: `(params, sequences) -> [P, G]`; None without a critic.
    build: `(policy params, key) -> params`.
    frozen: Entries that are not trained.
  """

  policy: Callable[[Any], Any]
  score: Callable[[Any, Sequences], Scores]
  values: Callable[[Any, Sequences], jax.Array] | None
  last_value: Callable[[Any, Sequences], jax.Array] | None
  build: Callable[[Any, jax.Array], dict[str, Any]]
  frozen: tuple[str, ...]


def assemble(
  model: presets.Model, critic: str, reward: RewardModel | None, *,
  temperature: float, lora_rank: int = 0, lora_alpha: float = 32.0,
) -> Parts:  # fmt: skip
  """Puts actor and critic together.

  Args:
    model: Of the policy.
    critic: "none"; "own", a copy of the policy with a head; "reward", a copy of the reward model; or "shared", a head
      on the policy.
    reward: The reward model, where the critic starts from it.
    temperature: Of every log-prob.
    lora_rank: Above 0, adapters are trained in place of the policy's weights.
    lora_alpha: Their update is multiplied by `lora_alpha / lora_rank`.
  """
  width = model.config.embed_dim
  plain_score = make_score(model.policy, temperature=temperature)
  shared = heads.with_value_head(model.policy, width)
  shared_score = make_score(shared, temperature=temperature, value=shared.value)
  own = heads.scalar_model(model.policy, width)
  if critic == "reward" and reward is not None:
    own = reward.model
  values, last_value = make_values(own), make_last_value(own)

  def policy(params: Any) -> Any:
    if lora_rank:
      return lora.merge(params["base"], params["adapters"], alpha=lora_alpha)
    return params["policy"]

  def with_head(params: Any) -> Any:
    return {"policy": policy(params), "value_head": params["value_head"]}

  def score(params: Any, sequences: Sequences) -> Scores:
    if critic == "none":
      return plain_score(policy(params), sequences)
    if critic == "shared":
      return shared_score(with_head(params), sequences)
    return plain_score(policy(params), sequences)._replace(values=values(params["critic"], sequences))

  def end_value(params: Any, sequences: Sequences) -> jax.Array:
    if critic == "shared":
      return make_last_value(shared)(with_head(params), sequences)
    return last_value(params["critic"], sequences)

  def build(start: Any, key: jax.Array) -> dict[str, Any]:
    adapter_key, head_key = jax.random.split(key)
    params: dict[str, Any] = {"policy": start}
    if lora_rank:
      params = {"base": start, "adapters": lora.init(adapter_key, start, rank=lora_rank)}
    if critic == "shared":
      params["value_head"] = own.init_head(head_key)
    elif critic == "reward" and reward is not None:
      params["critic"] = jax.tree.map(jnp.copy, reward.params)
    elif critic == "own":
      params["critic"] = {"backbone": jax.tree.map(jnp.copy, start), "head": own.init_head(head_key)}
    return params

  def old_values(params: Any, sequences: Sequences) -> jax.Array:
    return values(params["critic"], sequences)

  apart = old_values if critic in ("own", "reward") else None
  frozen = ("base",) if lora_rank else ()
  return Parts(policy, score, apart, None if critic == "none" else end_value, build, frozen)
