"""A file of any size -> chunks -> the answers that the service would give, in the input's order."""
