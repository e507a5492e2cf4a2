"""Call grammar: which tokens may come next, so that a malformed call cannot be written.

A sampler holds one :class:`CallMask` per sequence: ask ``mask()`` before each token, ``accept(id)``
after it. Outside calls the mask is free and costs nothing.
"""

from baleen.protocol.grammar.export import Export, to_ebnf, to_structural_tag
from baleen.protocol.grammar.mask import CallMask
from baleen.protocol.grammar.rules import CallRules
from baleen.protocol.grammar.vocabulary import TokenMask, Vocabulary

__all__ = [
    "CallMask",
    "CallRules",
    "Export",
    "TokenMask",
    "Vocabulary",
    "to_ebnf",
    "to_structural_tag",
]
