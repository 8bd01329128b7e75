"""Many messages at once: an upload -> a folder -> `firstline score` beside the service ->
results.
"""
