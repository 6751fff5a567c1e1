"""Everything that makes an interval, a p, an AUC, a correlation or a rate; it knows nothing of what is counted."""
