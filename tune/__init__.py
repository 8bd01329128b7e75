"""Edge and cloud bundles -> a certified policy -> a release."""
