"""Grammars of turns: which tokens may come next, so that a malformed call cannot be written.

A sampler holds one :class:`CallMask` per sequence: ask ``mask()`` before each token, ``accept(id)``
after it. Outside calls the mask is free and costs nothing. Its rules are those of calls, or those
of an answer that has to have a form.
"""

from baleen.protocol.grammar.answer_rules import AnswerForm, AnswerRules
from baleen.protocol.grammar.export import Export, answer_to_ebnf, to_ebnf, to_structural_tag
from baleen.protocol.grammar.mask import CallMask
from baleen.protocol.grammar.rules import CallRules
from baleen.protocol.grammar.vocabulary import TokenMask, Vocabulary

__all__ = [
    "AnswerForm",
    "AnswerRules",
    "CallMask",
    "CallRules",
    "Export",
    "TokenMask",
    "Vocabulary",
    "answer_to_ebnf",
    "to_ebnf",
    "to_structural_tag",
]
