"""Training of a generator from recordings alone: every part of a batch is a tensor operation, for CPU and GPU alike."""
