"""What training stages share: run folders, resumption, optimizers, sharding over processes, self-generated histories."""
