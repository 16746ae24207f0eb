"""What the critic thinks of a decision, against ranges that the training data proposed."""

from __future__ import annotations

from collections.abc import Mapping

# Q of the chosen action; by how much it exceeds V; the spread of Q over the candidates; the
# observation's distance from the training data.
VALUE_NAMES = ('q', 'advantage', 'spread', 'distance')
VALUE_ACTIONS = ('report', 'hold', 'stop')


class ValueGuard:
    """Watches the values of decisions; pure, and counts decisions, not time.

    Attributes:
        ranges: name (of VALUE_NAMES) -> lowest and highest value that is usual. Those of the
            decision that is checked next: they depend on its N.
    """

    def __init__(self, action: str = 'report', ticks: int = 3) -> None:
        """Watch nothing yet.

        Args:
            action: what is done about values outside, of VALUE_ACTIONS.
            ticks: it is done when so many decisions in a row have some value outside.
        """
        self.ranges: Mapping[str, tuple[float, float]] = {}
        self.action = action
        self._ticks = ticks
        self.reset()

    def reset(self) -> None:
        """Forget the decisions before."""
        self._outside = 0

    def check(self, values: Mapping[str, float]) -> tuple[list[str], bool]:
        """Return a text for each value outside its range, and whether it must be acted upon now.

        Args:
            values: name -> value of one decision. NaN is outside.
        """
        texts = []
        for name, (lowest, highest) in self.ranges.items():
            value = values[name]
            if not lowest <= value <= highest:
                texts.append(f'{name} {value:.4g} is outside {lowest:.4g} to {highest:.4g}, what '
                             'it was in training')
        self._outside = self._outside + 1 if texts else 0
        return texts, self.action != 'report' and self._outside >= self._ticks
