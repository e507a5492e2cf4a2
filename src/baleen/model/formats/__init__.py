"""Number formats and file layout of released checkpoints."""
