"""Play a dream in real time: one loop (`dreamer.Dreamer`, `session.Session`), and fronts that show it."""
