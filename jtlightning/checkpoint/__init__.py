"""Checkpoint files: written atomically, verified when read, unable to run code."""

from __future__ import annotations
