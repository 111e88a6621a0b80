"""A grammar in llguidance's own words, and the limits it is held to.

Apart from the compiler, because the trial process (``text.trial``) needs both and nothing else.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

#: TGI's JSON has at most one blank between any two of its parts, and so cannot end in blanks for ever.
#: Keywords that cannot be enforced (``not``, ``uniqueItems`` ...) are passed over, as TGI does.
_JSON_OPTIONS: JsonCompileOptions = {"whitespace_pattern": " ?", "lenient": True}


def specification(kind: str, text: str) -> str:
    r"""What ``LLMatcher`` takes. Raises ``ValueError`` for JSON that is none or is nested too deeply.

    ``\d``, ``\w`` and ``\s`` of a regex mean ASCII, as in the engine that TGI compiles its own with.
    """
    if kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(text, overrides=_JSON_OPTIONS)
    return LLMatcher.grammar_from_regex(regex_to_lark(text, "dws"))


def limits() -> LLParserLimits:
    """The library's own limits on a grammar and on each step, but for the memory of one grammar.

    A state of the lexer costs about 1 kB and is made as the text reaches it: 64 MB at most.
    """
    return LLParserLimits(max_lexer_states=64_000, verbose_errors=False)


def match(tokenizer: LLTokenizer, kind: str, text: str) -> LLMatcher:
    """A matcher at the beginning of the text. Raises ``ValueError`` with what is wrong with the grammar."""
    matcher = LLMatcher(tokenizer, specification(kind, text), log_level=0, limits=limits())
    if matcher.is_error():
        raise ValueError(reason(matcher.get_error()))
    return matcher


def reason(error: str) -> str:
    """One line of the library's many: what is wrong, without the picture of where."""
    if error.startswith("NoExtension"):
        return "no text follows it"
    found = re.search(r"^error: (.*)$", error, re.MULTILINE)
    line = found.group(1) if found else error.strip().partition("\n")[0]
    line = re.sub(r"^at \d+\(\d+\): |\s*<non-verbose/>$", "", line)
    return line if len(line) <= 300 else line[:300] + "..."
