"""The learned world: a video diffusion transformer that dreams in real time. Torch only, no Gymnasium."""
