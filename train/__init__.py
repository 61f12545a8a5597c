"""How the worlds are trained: every stage is a command, `python -m train.<stage> street`. Not in the wheel."""
