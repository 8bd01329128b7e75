"""What makes the edge's model small and self-critical: its words, its graph and its extra
outputs.
"""
