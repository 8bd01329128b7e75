"""A service on this machine: start, move between releases, status and stop, and its HAProxy."""
