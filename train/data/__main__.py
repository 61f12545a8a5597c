"""`python -m train.data`: see train/data/commands.py."""

from train.data.commands import main

main()
