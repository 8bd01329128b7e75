"""A table -> learned scores, and the pool of every score that a policy may be made of."""
