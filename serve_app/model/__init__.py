"""A bundle -> a model that is checked by hash and golden messages -> calibrated predictions."""
