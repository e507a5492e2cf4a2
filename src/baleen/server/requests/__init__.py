"""From a body to token ids. Begin with ``ask.py``, then ``prepared.py``."""
