"""Ids of a trace's requests, made unique: pairs between runs are formed by them."""

import msgspec

from kvload.workloads.traces.notes import Notes
from kvload.workloads.traces.trace import TraceRequest

_TOLD = "ids that other rows had before: numbered ('x', 'x#2' ...)"


class UniqueIds:
    """Numbers ids that come again: the second ``x`` becomes ``x#2``.

    Rows whose id is their own number, counted from 0, are the common case and cost no memory while nothing else came.
    """

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._rows = 0
        self._counted = 0
        self._times: dict[str, int] = {}

    def unique(self, request: TraceRequest) -> TraceRequest:
        """The request under an id that none before it had."""
        number, self._rows = self._rows, self._rows + 1
        if number == self._counted and request.id == str(number):
            self._counted += 1
            return request
        if not self._is_known(request.id):
            self._times[request.id] = 1
            return request
        self._notes.rows(_TOLD)
        times = self._times.get(request.id, 1)
        while True:
            times += 1
            name = f"{request.id}#{times}"
            if not self._is_known(name):
                break
        self._times[request.id] = times
        self._times[name] = 1
        return msgspec.structs.replace(request, id=name)

    def _is_known(self, name: str) -> bool:
        is_number = name.isascii() and name.isdigit() and str(int(name)) == name if len(name) < 19 else False
        return name in self._times or (is_number and int(name) < self._counted)
