"""Requests in other dialects than Chat Completions, there and back.

Chat Completions is the common tongue: each module turns a request of its dialect into a Chat
Completions body (``to_chat``) and back (``from_chat``), and the encoder reads Chat Completions.
"""

from baleen.protocol.dialects import anthropic, responses

__all__ = ["anthropic", "responses"]
