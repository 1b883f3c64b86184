import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.train import parallel


def test_mesh_takes_all_devices_and_checks_sizes():
  assert parallel.make_mesh().shape == {"data": 4, "fsdp": 1, "tensor": 1}
  assert parallel.make_mesh(fsdp=2).shape == {"data": 2, "fsdp": 2, "tensor": 1}
  with pytest.raises(ValueError, match="must be the 4 devices"):
    parallel.make_mesh(data=3)


def test_replicate_copies():
  x = jnp.arange(3.0)
  copy = parallel.replicate(x, parallel.make_mesh())
  copy.delete()
  np.testing.assert_array_equal(x, [0, 1, 2])


def test_rows_must_divide_over_the_devices():
  mesh = parallel.make_mesh()
  assert len(parallel.shard_rows(jnp.zeros((8, 3)), mesh).addressable_shards) == 4
  with pytest.raises(ValueError, match="multiple of the 4 devices"):
    parallel.shard_rows(jnp.zeros((6, 3)), mesh)
  with pytest.raises(ValueError, match="multiple of 4 devices"):
    parallel.pmap_step(lambda state, batch: (state, batch))(jnp.zeros(()), jnp.zeros((6, 3)))


def test_typed_keys_can_be_replicated():
  key = parallel.replicate(jax.random.key(3), parallel.make_mesh())
  np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(jax.random.key(3)))
