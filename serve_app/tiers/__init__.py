"""A router's calls -> a tier's replicas: batching, retry, the local socket, load balancing,
autoscaling, and the replica itself.
"""
