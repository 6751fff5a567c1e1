"""`sae-diff predict`: measuring a set of fine-tunes, what its models foretell, figures and page."""
