"""Bytes to and from a client: its connection, and events on it."""
