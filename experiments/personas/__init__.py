"""The personality space: its directions and geometry (`space`), what they can do about misalignment (`guardrails`,
`monitoring`), and characters that a fine-tune forms (`characters`)."""
