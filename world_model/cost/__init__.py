"""What a block costs: FLOPs, memory and time, counted and planned. `python -m world_model.cost.plan` prints them."""
