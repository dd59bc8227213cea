"""Undo the spacing of corpora that were published in tokens.

A model that was trained on plain text is asked for the likelihood of plain text, so zero-shot perplexity on
these corpora is of their text put back together. Perplexity per original word needs the words of the
original.
"""

import re
from collections.abc import Callable
from typing import Literal

Detokenizer = Literal["wikitext", "ptb", "lm1b", "lambada"]

_Rule = tuple[re.Pattern[str], str]


def _rules(*pairs: tuple[str, str]) -> tuple[_Rule, ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


_PAIRED = (
    (r"\(\s*([^()]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\[\]]*?)\s*\]", r"[\1]"),
    (r'"[ \t]*([^"\n]*?)[ \t]*"', r'"\1"'),
)
"""Brackets and quotation marks close up on what they enclose."""

_CLITICS = (
    (r" n't\b", "n't"),
    (r" '(s|m|d|ll|re|ve|S|M|D|LL|RE|VE)\b", r"'\1"),
)

_RULES: dict[Detokenizer, tuple[_Rule, ...]] = {
    "wikitext": _rules(
        (r" @([-,.])@ ", r"\1"),
        (r" ([:;.!?,])(?= |$|\n)", r"\1"),
        *_PAIRED,
        (r"(?m)^( *)(=+) (.*?) \2 *$", r"\1\2 \3 \2"),
        (r" ?° ?(?=[CF]\b)", "°"),
        *_CLITICS,
        (r" '(?= |$|\n)", "'"),
        (r"(?<=\d) (?=°)", ""),
        (r"\$ (?=\d)", "$"),
        (r" (%)", r"\1"),
    ),
    "ptb": _rules(
        *_CLITICS,
        (r"\b(ca|wo|do|is|are|was|were|did|does|had|has|have|could|would|should|must|need) n't", r"\1n't"),
        (r" ([:;.!?,%])(?= |$|\n)", r"\1"),
        (r"\$ (?=[\dN])", "$"),
        (r"# (?=[\dN])", "#"),
        *_PAIRED,
        (r" '(?= |$|\n)", "'"),
    ),
    "lm1b": _rules(
        *_CLITICS,
        (r"\$ (?=\d)", "$"),
        (r"£ (?=\d)", "£"),
        (r" ([:;.!?,%])(?= |$|\n)", r"\1"),
        *_PAIRED,
        (r" '(?= |$|\n)", "'"),
        (r" ([-–]) (?=\w+ed\b)", r"\1"),
    ),
    "lambada": _rules(
        (r"``|''|[“”]", '"'),
        (r"[‘’]", "'"),
        *_CLITICS,
        (r" ([:;.!?,])(?= |$|\n)", r"\1"),
        *_PAIRED,
    ),
}


def detokenize(name: Detokenizer) -> Callable[[str], str]:
    """The function from a corpus's spaced tokens to plain text."""
    rules = _RULES[name]

    def undo(text: str) -> str:
        for pattern, replacement in rules:
            text = pattern.sub(replacement, text)
        return text

    return undo
