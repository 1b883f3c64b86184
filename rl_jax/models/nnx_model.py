"""Flax NNX modules as policies: the module is split into its graph and a pytree of parameters, once."""

from typing import Any

from flax import nnx
from jaxtyping import Array

from rl_jax.models.transformer import Policy


def from_nnx(module: nnx.Module) -> tuple[Policy, Any]:
  """Returns an NNX module's pure functions and its parameters, which are what is trained.

  Args:
    module: It is called as `Policy.apply` is, less the parameters, and has methods `unembed() -> [D, V]` and
      `empty_cache(batch, size)`. Variables that are no `nnx.Param` keep the values that they have now.

  Returns:
    A policy, whose `init` gives the module's parameters whatever the key, and these parameters.

  >>> import jax
  >>> import jax.numpy as jnp
  >>> class Bigram(nnx.Module):
  ...   def __init__(self, rngs):
  ...     self.table = nnx.Embed(5, 5, rngs=rngs)
  ...   def __call__(self, tokens, positions, **_):
  ...     return self.table(tokens), ()
  ...   def unembed(self):
  ...     return jnp.eye(5)
  ...   def empty_cache(self, batch, size):
  ...     return ()
  >>> policy, params = from_nnx(Bigram(nnx.Rngs(0)))
  >>> hidden, _ = policy.apply(params, jnp.array([[1, 2]]), jnp.array([[0, 1]]))
  >>> jax.tree.map(jnp.shape, params), hidden.shape
  ({'table': {'embedding': (5, 5)}}, (1, 2, 5))
  """
  graph, initial, rest = nnx.split(module, nnx.Param, ...)

  def merged(params: Any) -> Any:
    state = nnx.clone(initial)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state, rest)

  def init(key: Array) -> Any:
    del key
    return nnx.to_pure_dict(initial)

  def apply(params: Any, *args: Any, **kwargs: Any) -> Any:
    return merged(params)(*args, **kwargs)

  def unembed(params: Any) -> Array:
    return merged(params).unembed()

  def empty_cache(batch: tuple[int, ...], size: int) -> Any:
    return merged(nnx.to_pure_dict(initial)).empty_cache(batch, size)

  return Policy(init, apply, unembed, empty_cache), nnx.to_pure_dict(initial)
