"""Texts -> answers: guard, edge, decide, cloud, audit, in that order, in service and offline.

Knows neither HTTP nor Ray: a tier is any function from texts to predictions.
"""
