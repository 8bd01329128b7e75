"""Audit records -> figures, alerts and a health score, in one actor that every router tells."""
