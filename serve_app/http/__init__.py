"""HTTP in -> one call of the service -> HTTP out: body, middleware, routes, errors, idempotency,
and the Open Inference Protocol.
"""
