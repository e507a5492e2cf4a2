"""The gateway: HTTP doors for agents in front of any engine. Needs the extra ``serve``.

Importing this package imports nothing heavy; start with :mod:`baleen.server.serving`.
"""
