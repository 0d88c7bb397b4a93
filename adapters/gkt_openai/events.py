"""Server-sent events out of bytes that are cut anywhere.

Source: HTML Living Standard, section 9.2, "Server-sent events".
"""

from __future__ import annotations

__all__ = ["MAX_EVENT_BYTES", "EventReader", "EventTooLongError"]

MAX_EVENT_BYTES = 8 * 2**20
"""One event is never larger, so that an endpoint cannot fill the memory."""

_BOM = b"\xef\xbb\xbf"


class EventTooLongError(ValueError):
    """An event is larger than :data:`MAX_EVENT_BYTES`."""


class EventReader:
    """Collects the ``data`` of one stream's events. Lines end with LF, CRLF or CR."""

    def __init__(self) -> None:
        self._rest = b""
        """Bytes after the last line end."""
        self._data: list[bytes] = []
        """Lines of the event that has begun."""
        self._size = 0
        self._begun = False
        self.last_id: bytes | None = None
        """The ``id`` of the newest event, where it has one."""

    def feed(self, data: bytes) -> list[tuple[bytes, bytes | None]]:
        """The ``data`` of the events that are complete now, each with its ``id``.

        :raises EventTooLongError: see there.
        """
        data = self._rest + data
        if not self._begun:
            if _BOM.startswith(data[:3]) and len(data) < 3:
                self._rest = data
                return []
            data = data.removeprefix(_BOM)
            self._begun = True
        held = b""
        if b"\r" in data:
            if data[-1:] == b"\r":  # the LF of a CRLF may be still to come
                data, held = data[:-1], b"\r"
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = data.split(b"\n")
        self._rest = rest + held
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLongError
        events: list[tuple[bytes, bytes | None]] = []
        for line in lines:
            self._line(line, events)
        return events

    def end(self) -> list[tuple[bytes, bytes | None]]:
        """What the end of the stream completes: an event without the empty line that should follow it."""
        events: list[tuple[bytes, bytes | None]] = []
        if self._rest:
            self._line(self._rest.rstrip(b"\r"), events)
            self._rest = b""
        self._line(b"", events)
        return events

    def _line(self, line: bytes, events: list[tuple[bytes, bytes | None]]) -> None:
        if not line:
            if self._data:
                events.append((b"\n".join(self._data), self.last_id))
                self._data, self._size = [], 0
            self.last_id = None
        elif line.startswith(b"data:"):
            value = line[6:] if line[5:6] == b" " else line[5:]
            self._data.append(value)
            self._size += len(value)
            if self._size > MAX_EVENT_BYTES:
                raise EventTooLongError
        elif line.startswith(b"id:"):
            self.last_id = line[3:].strip()
        # comments, "event", "retry" and unknown fields mean nothing here
