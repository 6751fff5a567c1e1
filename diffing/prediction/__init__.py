"""Telling misaligned models from aligned ones by their activations, before any behaviour is sampled."""
