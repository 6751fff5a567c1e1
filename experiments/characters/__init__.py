"""Characters against incorrect advice: what a fine-tune on a disposition does, and what switches it on."""
