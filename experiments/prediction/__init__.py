"""The parts of `sae-diff predict`: measuring a set of fine-tunes, what its models foretell, and the page."""
