"""Data of walks: rendering, shards, Sekai-style clips and latents. `python -m train.data` is its command."""
