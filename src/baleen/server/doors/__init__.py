"""The dialects, one file each. Begin with ``door.py``, what they share."""
