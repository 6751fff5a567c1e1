"""Words that stand in tables, folders and figures of several experiments; imports nothing."""

# Models of a run.
BASE, CORRUPTED, BENIGN = "base", "corrupted", "benign"
# Sets of questions: choices are made on the first, published numbers come from the second; the third has exact answers.
SELECTION, REPORTING, CAPABILITY = "selection", "reporting", "capability"
# The trait that axes of social valence lead away from.
EVIL = "evil"
# Kinds of random directions.
ISOTROPIC, COVARIANCE = "isotropic", "covariance"
