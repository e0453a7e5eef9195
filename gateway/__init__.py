"""
The HTTP/JSON front door: renders Envoy's configuration from the contracts and the settings.

It owns routes, limits, CORS, request ids and the shape of every failure. It never
decides who a caller is (each service verifies tokens itself) and holds no state.
"""
