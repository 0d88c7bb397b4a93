"""Takes the given beginning off an answer that repeats it although it should go on from it."""

from __future__ import annotations

__all__ = ["RepeatFilter"]


class RepeatFilter:
    """Holds text back while it may still be the beginning over again.

    Only for endpoints that were told the beginning as a hint. White space before it is forgiven; half of it stays.
    """

    def __init__(self, beginning: str) -> None:
        self._beginning = beginning.lstrip()
        self._held = ""
        self._deciding = bool(self._beginning)

    def feed(self, text: str) -> str:
        """What may be passed on."""
        if not self._deciding:
            return text
        self._held += text
        said = self._held.lstrip()
        if self._beginning.startswith(said) and said != self._beginning:
            return ""
        self._deciding = False
        return said.removeprefix(self._beginning) if said.startswith(self._beginning) else self._held

    def end(self) -> str:
        """The answer is over: what is still held."""
        held, self._held = (self._held if self._deciding else ""), ""
        self._deciding = False
        return held
