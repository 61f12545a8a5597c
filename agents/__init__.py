"""Agents that live in the worlds of `yume_gym`: `python -m agents.<agent>`."""
