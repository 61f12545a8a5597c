"""The published 5B weights: download, file layouts, their text encoder and autoencoder, placement on devices."""
