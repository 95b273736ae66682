"""Losses: arrays in, a scalar out."""
