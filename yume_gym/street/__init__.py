"""The ground-truth street: a procedural town on a torus, its renderer, light, weather, events and walkers."""
