"""From token ids to events, and what may go wrong between. Begin with ``answer.py``."""
