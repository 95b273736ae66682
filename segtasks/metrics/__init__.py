"""Metrics on NumPy arrays; usable without the trainer."""
