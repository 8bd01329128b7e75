"""Counts on untouched rows -> bounds and tests -> what is certified of a release."""
