"""The command line: one command, lazily loaded groups and verbs."""
