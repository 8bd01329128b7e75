"""A file of labelled messages -> registered edge and cloud bundles."""
