"""Pure array functions on `[..., T]`, time last. They import jax and chex only and never touch a model."""
