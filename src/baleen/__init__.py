"""DeepSeek-V4 as an agent system: the model, the protocol, the sandbox and the learning.

Importing this package does nothing; each part is imported by its own name.
"""

__version__ = "0.1.0"
