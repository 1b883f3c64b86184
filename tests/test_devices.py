import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax import devices


def test_mesh_takes_all_devices_and_checks_sizes():
  assert devices.make_mesh().shape == {"data": 4, "fsdp": 1, "tensor": 1}
  assert devices.make_mesh(fsdp=2).shape == {"data": 2, "fsdp": 2, "tensor": 1}
  with pytest.raises(ValueError, match="must be the 4 devices"):
    devices.make_mesh(data=3)


def test_replicate_copies():
  x = jnp.arange(3.0)
  copy = devices.replicate(x, devices.make_mesh())
  copy.delete()
  np.testing.assert_array_equal(x, [0, 1, 2])


def test_rows_must_divide_over_the_devices():
  mesh = devices.make_mesh()
  assert len(devices.put(jnp.zeros((8, 3)), mesh).addressable_shards) == 4
  with pytest.raises(ValueError, match="multiple of the 4 devices"):
    devices.put(jnp.zeros((6, 3)), mesh)
  with pytest.raises(ValueError, match="multiple of 4 devices"):
    devices.pmap_step(lambda state, batch: (state, batch))(jnp.zeros(()), jnp.zeros((6, 3)))


def test_typed_keys_can_be_replicated():
  key = devices.replicate(jax.random.key(3), devices.make_mesh())
  np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(jax.random.key(3)))
