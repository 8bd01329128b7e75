"""Texts -> answers: guard, edge, decide, cloud, audit, in that order, in service and offline.

What is done between the calls to the tiers stands in steps.py, once for both.

Knows neither HTTP nor Ray: a tier is any function from texts to predictions.
"""
