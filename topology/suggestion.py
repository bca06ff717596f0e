"""What to say about a misspelt name. On the lowest floor, because topologies, options and tasks all have names that people type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(word: str, valid: Iterable[str]) -> str | None:
    """The valid name that is most like the word, whatever its case; None if none is like it."""
    names = {name.lower(): name for name in valid}
    found = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.5)
    return names[found[0]] if found else None


def nearest(word: str, valid: Iterable[str]) -> str:
    """The repair to offer: "did you mean x?", or the list of the valid names."""
    names = list(valid)
    close = closest(word, names)
    return f"did you mean {close}?" if close is not None else f"valid are {', '.join(names)}"
