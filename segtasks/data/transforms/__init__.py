"""Transforms of samples: callables (sample, generator) -> sample."""
