"""Latent, direction and behaviour while an organism is corrupted and re-aligned."""
