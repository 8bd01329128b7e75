"""Invented customer messages: rows and a seed -> texts labelled negative, neutral or positive."""
