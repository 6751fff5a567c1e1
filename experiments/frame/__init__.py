"""The frame that every experiment stands in: see `Experiment`, `Lab` and `conduct`."""
