"""The judge: networks that tell from pictures how the camera moved and what there is to see. `python -m train.judge` trains it."""
