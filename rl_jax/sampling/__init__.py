"""Prefill, decode and token samplers. Models come in as Callables; nothing here imports one."""
