"""How many candidates are drawn, so that the inference keeps to its deadline. Pure: no clock."""

from __future__ import annotations

from idql_ros.latency import Window

LADDER = (64, 32, 16, 8)

# Inferences that are judged together, and how many of them at least.
_WINDOW = 100
_LEAST = 20
# N rises where its p99, in proportion to N, would stay below this share of the deadline, ...
_ROOM = 0.8
# ... after so many inferences; after each fall that undid a rise twice as many, up to a limit.
_PATIENCE = 200
_MOST_PATIENCE = 6400


def rungs(candidates: int, deadline_s: float) -> tuple[int, ...]:
    """Return every N that may come up, the configured one first."""
    return (candidates, *(n for n in LADDER if n < candidates and deadline_s))


class Budget:
    """N, falling along a ladder while the p99 of the inference exceeds the deadline.

    It recovers with hysteresis: the higher N must fit with room to spare, for many inferences; a
    rise that had to be undone makes it wait longer.

    Attributes:
        candidates: N of the next inference.
    """

    def __init__(self, candidates: int, deadline_s: float) -> None:
        """Start with all candidates.

        Args:
            candidates: N where time allows; the rungs below it are those of LADDER.
            deadline_s: for one inference; 0: there is none, and N stays.
        """
        self._rungs = rungs(candidates, deadline_s)
        self._deadline_s = deadline_s
        self._rung = 0
        self._window = Window(_WINDOW)
        self._patience = _PATIENCE
        self._since_change = 0
        self._rose = False

    @property
    def candidates(self) -> int:
        """Return N of the next inference."""
        return self._rungs[self._rung]

    def add(self, candidates: int, seconds: float) -> str:
        """Take how long an inference with `candidates` took.

        Returns:
            What changed and why, in words; '' where nothing did.
        """
        if not self._deadline_s or candidates != self.candidates:
            return ''
        self._window.add(seconds)
        self._since_change += 1
        if len(self._window) < _LEAST:
            return ''
        p99_s = self._window.percentiles().p99
        if p99_s > self._deadline_s and self._rung + 1 < len(self._rungs):
            if self._rose:
                self._patience = min(2 * self._patience, _MOST_PATIENCE)
            return self._change(1, p99_s)
        if self._rung == 0 or self._since_change < self._patience:
            return ''
        grown = p99_s * self._rungs[self._rung - 1] / self.candidates
        return self._change(-1, p99_s) if grown < _ROOM * self._deadline_s else ''

    def _change(self, step: int, p99_s: float) -> str:
        before = self.candidates
        self._rung += step
        self._rose = step < 0
        self._since_change = 0
        self._window.clear()
        return (f'N {before} -> {self.candidates}: the inference took {1e3 * p99_s:.1f} ms (p99), '
                f'its deadline is {1e3 * self._deadline_s:.1f} ms')
