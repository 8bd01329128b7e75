"""Signals -> score -> rule -> route, what it costs, and why. Pure, on one message or on a table."""
