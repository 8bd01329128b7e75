"""Tables and a selection -> figures, pictures and the report's page."""
