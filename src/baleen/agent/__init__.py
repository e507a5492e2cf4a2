"""The loop that joins a model endpoint and a sandbox."""
