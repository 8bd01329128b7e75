"""A key and a request -> admitted, or refused: who may ask, how often, and with what
consequences.
"""
