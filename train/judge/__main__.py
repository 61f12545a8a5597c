"""`python -m train.judge`: see train/judge/training.py."""

from train.judge.training import main

main()
