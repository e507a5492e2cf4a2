"""Our parser inside other servers: one module per server, imported by that server alone."""
