"""Encoders, the one training loop on Ray, and the checkpoints that outlive its workers."""
