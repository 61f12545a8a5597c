"""What is hand-made and draws the world beside the generator: an optional list of priors behind one interface (base.py)."""
