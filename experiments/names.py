"""Words that stand in tables, folders and figures of several experiments; imports nothing."""

# Models of a run.
BASE, CORRUPTED, BENIGN = "base", "corrupted", "benign"
# Sets of questions: choices are made on the first, published numbers come from the second; the third has exact answers.
SELECTION, REPORTING, CAPABILITY = "selection", "reporting", "capability"
# Axes of social valence: Semantic Valence Vector, first principal component; and the trait that both lead away from.
SVV, PC1, EVIL = "SVV", "PC1", "evil"
# Kinds of random directions.
ISOTROPIC, COVARIANCE = "isotropic", "covariance"
