"""A decoder-only transformer, whose configuration says what a family does; `models.families` maps checkpoints to it.

One prompt, G completions: a prompt `[P, L]` runs once, and its keys and values are a *prefix* that its completions
`[P, G, T]` attend to, in sampling and in training; gradients flow through the prefix.

    prompt = policy.apply(params, prompts, positions, mask=prompt_mask)
    output = policy.apply(params, completions, positions, mask=mask, prefix=prompt.kv)
    logits = output.hidden @ policy.unembed(params)

The layers are one Flax module under `nn.scan`, so one layer is compiled whatever the depth, and its parameters are
stacked on a leading axis.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl_jax.models import rope
from rl_jax.models.experts import Experts, ExpertsConfig

MASKED = -1e30  # finite, so that a row that may attend to nothing gives a number instead of NaN
FAR = 1 << 30  # the window of a layer that has none, beside others that have
ACTIVATIONS = {"silu": nn.silu, "gelu_tanh": partial(nn.gelu, approximate=True)}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """The shape of a model; `models.families` makes one from a Hugging Face configuration."""

  vocab_size: int
  num_layers: int
  embed_dim: int
  mlp_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  norm_eps: float = 1e-6
  centered_norms: bool = False  # norms take the mean away and add a bias: LayerNorm in place of RMSNorm
  norms: str = "pre"  # where attention and MLP are normed: "pre", before them, "post", or "both"
  norm_offset: float = 0.0  # added to the scale of every norm
  qk_norm: str = "none"  # norms of queries and keys: "none", "head", of each head, or "all", of all heads together
  ropes: tuple[Mapping[str, Any] | None, ...] = (rope.DEFAULT,)  # ways to rotate queries and keys; None does not
  rope_of: tuple[int, ...] = ()  # which of them each layer has; the first by default
  windows: tuple[int | None, ...] = ()  # of each layer, how many tokens up to its own one attends to; None for all
  learned_positions: int = 0  # above 0: so many positions have an embedding of their own, which is added
  sinks: bool = False  # each head has a score that nothing is read for, by which attention may add up to less than 1
  activation: str = "silu"  # of the MLP's gate: "silu" or "gelu_tanh"
  gated: bool = True  # the MLP is `down(activation(gate) * up)`, or else `down(activation(up))`
  clamped_gate: tuple[float, float] | None = None  # (a, c): `g sigmoid(a g) (u + 1)` of gate and up, clamped to c
  experts: ExpertsConfig | None = None  # in place of the MLP; None for one MLP
  tie_embeddings: bool = True
  qkv_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  embed_scale: float = 1.0  # of embeddings
  residual_scale: float = 1.0  # of what attention and MLP add
  hidden_scale: float = 1.0  # of the last hidden states, and so of logits
  attention_scale: float | None = None  # of the products of queries and keys; 1 / sqrt(head_dim) by default
  attention_softcap: float | None = None  # the largest of these products, c tanh(x / c)
  logit_softcap: float | None = None  # the largest logit likewise
  dtype: Any = jnp.float32  # type of activations; parameters keep the type that they were loaded or made in
  unroll: int = 1  # layers that are compiled one behind the other instead of as a loop: faster where they are few
  remat: bool = False  # compute a layer's activations again in the backward pass instead of keeping them

  def __post_init__(self):
    for name in ("vocab_size", "num_layers", "embed_dim", "mlp_dim", "num_heads", "num_kv_heads", "head_dim"):
      if not isinstance(value := getattr(self, name), int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if wrong := [
      window for window in self.windows if window is not None and not (isinstance(window, int) and window > 0)
    ]:
      raise ValueError(f"windows must be positive integers or None, got {wrong[0]!r}")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and {self.num_kv_heads}")
    for name, each in (("rope_of", self.rope_of), ("windows", self.windows)):
      if each and len(each) != self.num_layers:
        raise ValueError(f"{name} must have one entry for each of {self.num_layers} layers, got {len(each)}")


class KVCache(NamedTuple):
  """Keys and values of all layers `[layers, ..., kv_heads, S, head_dim]`, and which of the S slots are real.

  Heads before slots, as attention multiplies them: a decoding step then reads the cache where it lies.
  """

  keys: Float[Array, "layers *batch K S C"]
  values: Float[Array, "layers *batch K S C"]
  mask: Bool[Array, "*batch S"]


class Output(NamedTuple):
  """Hidden states after the last norm, and the keys and values of the tokens that were run (or the cache, updated)."""

  hidden: Float[Array, "*batch T D"]
  kv: KVCache


class Norm(nn.Module):
  """`x / sqrt(mean(x^2) + eps) * (scale + offset)`, computed in float32.

  A centered one is LayerNorm: the mean of x is taken away first, and a bias is added.
  """

  eps: float
  offset: float = 0.0
  centered: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param("scale", nn.initializers.constant(1.0 - self.offset), (x.shape[-1],))
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if self.centered:
      wide -= jnp.mean(wide, axis=-1, keepdims=True)
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
    scale = scale.astype(wide.dtype) + self.offset if self.offset else scale
    along = (1,) * (x.ndim - 1) + (-1,)
    normed *= scale.reshape(along)
    if self.centered:
      normed += self.param("bias", nn.initializers.zeros, (x.shape[-1],)).reshape(along)
    return normed.astype(x.dtype)


class Attended(NamedTuple):
  """What all layers share: rotary angles, and who may attend to whom."""

  cos: Array  # [P, G, T, C / 2], after an axis of the ways to rotate where there are several
  sin: Array
  own_mask: Array  # [P, G, T, S]: S is the cache's size, or T where there is no cache
  prefix_mask: Array | None  # [P, G or 1, T or 1, L]
  cache_index: Array | None  # the slot that this call's first token is written to
  own_distance: Any = None  # [P, G, T, S], in real tokens, where a layer has a window
  prefix_distance: Any = None  # [P, G, T, L], where there is a prefix too

  def within(self, window: Array) -> "Attended":
    """Returns it for a layer whose tokens attend to so many tokens up to their own."""
    own = self.own_mask & (self.own_distance < window)
    if self.prefix_mask is None:
      return self._replace(own_mask=own)
    return self._replace(own_mask=own, prefix_mask=self.prefix_mask & (self.prefix_distance < window))


class Scores(NamedTuple):
  """How products of queries and keys become scores: `softcap(scale * q k)`."""

  scale: float
  softcap: float | None = None


def attend(
  query: Array,
  key: Array,
  value: Array,
  prefix: tuple[Array, Array] | None,
  shared: Attended,
  scores_as: Scores,
  sinks: Array | None = None,
) -> Array:
  """Grouped-query attention of G rows a prompt to the prompt's shared prefix and to their own tokens.

  Args:
    query: `[P, G, T, heads, C]`.
    key: `[P, G, kv_heads, S, C]`, and `value` likewise.
    prefix: Keys and values `[P, kv_heads, L, C]`, or None.
    shared: Masks.
    scores_as: Scale and largest value of the scores.
    sinks: `[heads]`, one more score of each head, for which nothing is read; None without.

  Returns:
    `[P, G, T, heads * C]`.

  >>> x = jnp.ones((1, 1, 2, 1, 4))  # one row of two tokens, one head
  >>> value = jnp.broadcast_to(jnp.array([[2.0], [4.0]]), (1, 1, 1, 2, 4))
  >>> shared = Attended(None, None, jnp.tril(jnp.ones((1, 1, 2, 2), bool)), None, None)
  >>> print(attend(x, jnp.swapaxes(x, -3, -2), value, None, shared, Scores(0.5))[0, 0, :, 0])
  [2. 3.]
  """
  kv_heads, length, size = key.shape[-3:]
  heads = query.shape[-2]
  # A key-value head serves r = heads / kv_heads query heads: [P, G, kv_heads, T, r, C].
  query = query.reshape(*query.shape[:3], kv_heads, heads // kv_heads, size) * scores_as.scale
  query = jnp.einsum("pgtkrc->pgktrc", query)
  scores = jnp.einsum("pgktrc,pgksc->pgktrs", query, key, preferred_element_type=jnp.float32)
  scores = softcapped(scores, scores_as.softcap)
  scores = jnp.where(shared.own_mask[:, :, None, :, None, :], scores, MASKED)
  if prefix is not None and shared.prefix_mask is not None:
    # One softmax over the prompt's tokens and the row's own; the prompt's keys are not copied for its G rows.
    prefix_scores = jnp.einsum("pgktrc,pklc->pgktrl", query, prefix[0], preferred_element_type=jnp.float32)
    prefix_scores = softcapped(prefix_scores, scores_as.softcap)
    prefix_scores = jnp.where(shared.prefix_mask[:, :, None, :, None, :], prefix_scores, MASKED)
    scores = jnp.concatenate([prefix_scores, scores], axis=-1)
  if sinks is not None:
    last = sinks.astype(scores.dtype).reshape(kv_heads, 1, heads // kv_heads, 1)
    scores = jnp.concatenate([scores, jnp.broadcast_to(last, (*scores.shape[:-1], 1))], axis=-1)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  weights = weights if sinks is None else weights[..., :-1]
  # The weighted values of the row's own tokens, which are the last ones, and of the prompt's.
  out = jnp.einsum("pgktrs,pgksc->pgktrc", weights[..., weights.shape[-1] - length :], value)
  if prefix is not None:
    out += jnp.einsum("pgktrl,pklc->pgktrc", weights[..., : prefix[1].shape[-2]], prefix[1])
  out = jnp.einsum("pgktrc->pgtkrc", out)
  return out.reshape(*out.shape[:3], heads * size)


def softcapped(x: Array, cap: float | None) -> Array:
  """Returns `c tanh(x / c)`; x itself without a cap.

  >>> print(softcapped(jnp.array([100.0]), 30.0).round(1), softcapped(jnp.array([100.0]), None))
  [29.9] [100.]
  """
  return x if cap is None else cap * jnp.tanh(x / cap)


def add_adapted(y: Array, x: Array, adapter: Any) -> Array:
  """Returns `y + (x A) B`, of y's type, to which the sum alone is rounded; products are in float32 at least.

  >>> adapter = {"a": jnp.ones((2, 1)), "b": jnp.full((1, 3), 0.5)}
  >>> print(add_adapted(jnp.zeros(3), jnp.array([1.0, 2.0]), adapter))
  [1.5 1.5 1.5]
  """
  wide = jnp.promote_types(y.dtype, jnp.float32)
  low = x.astype(wide) @ adapter["a"].astype(wide)
  return (y.astype(wide) + low @ adapter["b"].astype(wide)).astype(y.dtype)


def gated(config: TransformerConfig, gate: Array | None, up: Array) -> Array:
  """Returns what an MLP's last matrix reads: `activation(gate) * up`, or `activation(up)` without a gate."""
  activation = ACTIVATIONS[config.activation]
  if gate is None:
    return activation(up)
  if config.clamped_gate is None:
    return activation(gate) * up
  gain, limit = config.clamped_gate
  gate = jnp.minimum(gate, limit)
  return gate * jax.nn.sigmoid(gain * gate) * (jnp.clip(up, -limit, limit) + 1)


class Layer(nn.Module):
  """One block: attention, then an MLP or experts.

  Called under `nn.scan`: the carry is the residual stream `[P * G * T, D]` and the decode cache of all layers (or
  None), the scanned input this layer's number, prefix, window and way to rotate, the scanned output the keys and values
  of this call (where no cache is). With all tokens on one axis a weight's gradient is a plain matrix product; with
  three, XLA for CPU first transposes what it multiplies.
  """

  config: TransformerConfig

  @nn.compact
  def __call__(self, carry: tuple, scanned: tuple, shared: Attended) -> tuple:
    x, cache = carry
    number, prefix, window, way = scanned
    c = self.config
    shared = shared if window is None else shared.within(window)
    cos, sin = (shared.cos, shared.sin) if way is None else (shared.cos[way], shared.sin[way])
    norm = partial(Norm, c.norm_eps, c.norm_offset, c.centered_norms)

    def dense(features: int, name: str, bias: bool = False) -> Callable[[Array], Array]:
      plain = nn.Dense(features, use_bias=bias, dtype=c.dtype, name=name)
      adapter = self.get_variable("adapters", name)
      return plain if adapter is None else lambda x: add_adapted(plain(x), x, adapter)

    def normed(y: Array, name: str, *, where: str) -> Array:
      return norm(name=name)(y) if c.norms in (where, "both") else y

    def heads(y: Array, name: str = "") -> Array:
      y = norm(name=name)(y) if name and c.qk_norm == "all" else y
      y = y.reshape(*shared.own_mask.shape[:3], y.shape[-1] // c.head_dim, c.head_dim)
      return norm(name=name)(y) if name and c.qk_norm == "head" else y

    h = normed(x, "attention_norm", where="pre")
    query = heads(dense(c.num_heads * c.head_dim, "query", c.qkv_bias)(h), "query_norm")
    key = heads(dense(c.num_kv_heads * c.head_dim, "key", c.qkv_bias)(h), "key_norm")
    value = heads(dense(c.num_kv_heads * c.head_dim, "value", c.qkv_bias)(h))
    query, key = rope.rotate(query, cos, sin), rope.rotate(key, cos, sin)
    key, value = (jnp.swapaxes(x, -3, -2) for x in (key, value))

    new_kv = None
    if cache is None:
      new_kv = (key, value)
    else:
      start: Any = (number, 0, 0, 0, shared.cache_index, 0)
      cache = tuple(
        jax.lax.dynamic_update_slice(held, new[None].astype(held.dtype), start)
        for held, new in zip(cache, (key, value), strict=True)
      )
      key, value = (jax.lax.dynamic_index_in_dim(held, number, keepdims=False) for held in cache)

    scale = c.head_dim**-0.5 if c.attention_scale is None else c.attention_scale
    sinks = self.param("sinks", nn.initializers.zeros, (c.num_heads,)) if c.sinks else None
    attended = attend(query, key, value, prefix, shared, Scores(scale, c.attention_softcap), sinks)
    attended = dense(c.embed_dim, "output", c.output_bias)(attended.reshape(x.shape[0], c.num_heads * c.head_dim))
    x = x + c.residual_scale * normed(attended, "attention_post_norm", where="post")
    h = normed(x, "mlp_norm", where="pre")
    if c.experts is not None:
      out = Experts(c.experts, c.mlp_dim, partial(gated, c), c.dtype, name="experts")(h)
    else:
      up = dense(c.mlp_dim, "up", c.mlp_bias)(h)
      gate = dense(c.mlp_dim, "gate", c.mlp_bias)(h) if c.gated else None
      out = dense(c.embed_dim, "down", c.mlp_bias)(gated(c, gate, up))
    x = x + c.residual_scale * normed(out, "mlp_post_norm", where="post")
    return (x, cache), new_kv


class Transformer(nn.Module):
  """The decoder. Use it through `policy(config)` rather than directly."""

  config: TransformerConfig

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "P G T"],
    positions: Int[Array, "P G T"],
    attendable: Bool[Array, "P G S"],
    own_mask: Bool[Array, "P G T S"],
    prefix: KVCache | None = None,
    cache: KVCache | None = None,
    cache_index: Array | None = None,
  ) -> tuple[Array, Array | None, Array | None]:
    c = self.config
    embedding = self.param("embedding", nn.initializers.normal(0.02), (c.vocab_size, c.embed_dim))
    if not c.tie_embeddings:
      self.param("unembedding", nn.initializers.normal(0.02), (c.embed_dim, c.vocab_size))
    x = jnp.take(embedding, tokens.reshape(-1), axis=0).astype(c.dtype)
    x = x * jnp.asarray(c.embed_scale, c.dtype)
    if c.learned_positions:
      learned = self.param("positions", nn.initializers.normal(0.02), (c.learned_positions, c.embed_dim))
      x += jnp.take(learned, positions.reshape(-1), axis=0, mode="clip").astype(c.dtype)  # padded ones hold anything
    ways = [rope.angles(positions, rope.frequencies(each, c.head_dim)) for each in c.ropes]
    cos, sin = ways[0] if len(ways) == 1 else (jnp.stack(each) for each in zip(*ways, strict=True))
    distances = _distances(attendable, prefix, own_mask.shape[-2], cache_index) if any(c.windows) else (None, None)
    prefix_mask = None if prefix is None else prefix.mask[:, None, None, :]
    shared = Attended(cos, sin, own_mask, prefix_mask, cache_index, *distances)
    layer = nn.remat(Layer, prevent_cse=False) if c.remat else Layer
    layers = nn.scan(
      layer,
      variable_axes={"params": 0, "adapters": 0},
      split_rngs={"params": True},
      in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
      length=c.num_layers,
      unroll=c.unroll,
    )(c, name="layers")
    held = None if cache is None else (cache.keys, cache.values)
    windows = jnp.array([window or FAR for window in c.windows]) if any(c.windows) else None
    way = jnp.array(c.rope_of or (0,) * c.num_layers) if len(c.ropes) > 1 else None
    scanned = (jnp.arange(c.num_layers), None if prefix is None else (prefix.keys, prefix.values), windows, way)
    (x, held), new_kv = layers((x, held), scanned, shared)
    keys, values = new_kv if held is None else held
    norm = Norm(c.norm_eps, c.norm_offset, c.centered_norms, name="final_norm")
    x = norm(x) * jnp.asarray(c.hidden_scale, c.dtype)
    return x.reshape(*tokens.shape, c.embed_dim), keys, values


def _distances(
  attendable: Bool[Array, "P G S"], prefix: KVCache | None, length: int, start: Array | None
) -> tuple[Array, Array | None]:
  """How many real tokens each of T tokens, from slot `start` on, stands behind the others and behind the prefix's."""
  before = jnp.zeros(attendable.shape[0], jnp.int32) if prefix is None else jnp.sum(prefix.mask, axis=-1)
  place = before[:, None, None] + jnp.cumsum(attendable, axis=-1)  # the same number for what is padded
  own = place if start is None else jax.lax.dynamic_slice_in_dim(place, start, length, axis=-1)
  to_own = own[..., :, None] - place[..., None, :]
  if prefix is None:
    return to_own, None
  return to_own, own[..., None] - jnp.cumsum(prefix.mask, axis=-1)[:, None, None, :]


@dataclasses.dataclass(frozen=True)
class Policy:
  """A model as pure functions, which is all that sampling and training know of it: a policy, a critic, a reward model.

  Attributes:
    init: `key -> params`.
    apply: `(params, tokens, positions, *, mask, segments, prefix, cache, cache_index) -> Output`; `apply_transformer`
      says what they are.
    unembed: `params -> [D, V]`.
    empty_cache: `(batch shape, size) -> KVCache` with no real slots.
    value: `(params, hidden [..., D]) -> [...]`, a scalar head; None without one.
    softcap: The largest logit c, `logits = c tanh(hidden W / c)`; None without one.
  """

  init: Callable[[Array], Any]
  apply: Callable[..., Output]
  unembed: Callable[[Any], Array]
  empty_cache: Callable[[tuple[int, ...], int], KVCache]
  value: Callable[[Any, Array], Array] | None = None
  softcap: float | None = None


def _with_batch(x: Array, *, old: int, new: tuple[int, ...], lead: int = 0) -> Array:
  """Reshapes the `old` batch axes that follow the first `lead` axes into `new`."""
  return x.reshape(*x.shape[:lead], *new, *x.shape[lead + old :])


def _causal(attendable: Bool[Array, "*batch S"], length: int, offset: Array) -> Bool[Array, "*batch T S"]:
  """Who may attend to whom: token t, in slot `t + offset`, to the real slots up to its own."""
  shape = (*attendable.shape[:-1], length, attendable.shape[-1])
  query = jax.lax.broadcasted_iota(offset.dtype, shape, len(shape) - 2) + offset
  slot = jax.lax.broadcasted_iota(offset.dtype, shape, len(shape) - 1)
  return attendable[..., None, :] & (slot <= query)


def apply_transformer(
  module: Transformer,
  params: Any,
  tokens: Int[Array, "*batch T"],
  positions: Int[Array, "*batch T"],
  *,
  mask: Array | None = None,
  segments: Array | None = None,
  prefix: KVCache | None = None,
  cache: KVCache | None = None,
  cache_index: Array | int = 0,
) -> Output:
  """Runs tokens `[..., T]`.

  Args:
    module: The decoder.
    params: As `Policy.init` returns them, or with adapters beside them, as `models.lora.attach` does.
    tokens: `[..., T]`; `[..., G, T]` where there is a prefix `[..., L]`, which the G rows share.
    positions: Positions, of the same shape; a padded slot may hold anything.
    mask: Which tokens are real; the others are attended to by nobody. All by default.
    segments: The example that each token of a packed row belongs to, an integer: a token attends to those of its own
      alone. Not with a cache.
    prefix: Keys and values of earlier tokens, one row for all G.
    cache: Where given, this call's keys and values are written to it from slot `cache_index` on, and each token attends
      to all real slots up to its own.
    cache_index: An integer, traced or not.

  Returns:
    Hidden states, and the tokens' own keys and values, or the updated cache.
  """
  batch, length = tokens.shape[:-1], tokens.shape[-1]
  mask = jnp.ones(tokens.shape, bool) if mask is None else mask != 0
  index = jnp.asarray(cache_index)
  attendable = mask if cache is None else jax.lax.dynamic_update_slice_in_dim(cache.mask, mask, index, axis=-1)
  own_mask = _causal(attendable, length, jnp.zeros((), index.dtype) if cache is None else index)
  if segments is not None:
    own_mask &= segments[..., :, None] == segments[..., None, :]

  # The module works on [P, G, T]: rows without a common prefix are groups of one.
  groups = (math.prod(batch), 1) if prefix is None else (math.prod(batch[:-1]), batch[-1])
  group = partial(_with_batch, old=len(batch), new=groups)
  if prefix is not None:
    flat = partial(_with_batch, old=len(batch) - 1, new=groups[:1])
    prefix = KVCache(flat(prefix.keys, lead=1), flat(prefix.values, lead=1), flat(prefix.mask))
  if cache is not None:
    cache = KVCache(group(cache.keys, lead=1), group(cache.values, lead=1), attendable)
  start = None if cache is None else index
  variables = {"params": {name: leaf for name, leaf in params.items() if name != "adapters"}}
  if "adapters" in params:
    variables["adapters"] = params["adapters"]
  outputs: Any = module.apply(
    variables, group(tokens), group(positions), group(attendable), group(own_mask), prefix, cache, start
  )
  hidden, keys, values = outputs
  ungroup = partial(_with_batch, old=2, new=batch)
  return Output(ungroup(hidden), KVCache(ungroup(keys, lead=1), ungroup(values, lead=1), attendable))


def policy(config: TransformerConfig) -> Policy:
  """Returns the pure functions of a transformer.

  >>> config = TransformerConfig(
  ...     vocab_size=11, num_layers=2, embed_dim=8, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=4)
  >>> model = policy(config)
  >>> params = model.init(jax.random.key(0))
  >>> tokens = jnp.array([[1, 2, 3]])
  >>> model.apply(params, tokens, jnp.array([[0, 1, 2]])).hidden.shape
  (1, 3, 8)
  """
  module = Transformer(config)

  def init(key: Array) -> Any:
    tokens = jnp.zeros((1, 1, 1), jnp.int32)
    return module.init(key, tokens, tokens, jnp.ones((1, 1, 1), bool), jnp.ones((1, 1, 1, 1), bool))["params"]

  def unembed(params: Any) -> Array:
    return params["unembedding"] if "unembedding" in params else params["embedding"].T

  def empty_cache(batch: tuple[int, ...], size: int) -> KVCache:
    shape = (config.num_layers, *batch, config.num_kv_heads, size, config.head_dim)
    return KVCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype), jnp.zeros((*batch, size), bool))

  return Policy(init, partial(apply_transformer, module), unembed, empty_cache, softcap=config.logit_softcap)
