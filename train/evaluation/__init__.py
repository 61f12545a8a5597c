"""What `python -m train.evaluate` measures, one module a question. All of it runs on any `worlds.World`."""
