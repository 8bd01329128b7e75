"""The audit log -> what another policy would have done, and what nobody can know."""
