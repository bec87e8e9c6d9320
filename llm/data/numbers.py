"""The columns of numbers that rows of preferences can have beside their texts: a new one is a line
here, and a field of `llm.scores.Pairs` where an objective reads it."""

from typing import NamedTuple

LARGEST = 3e38  # they are stored in float32


class Number(NamedTuple):
    """The least and the largest value of a column, and what is said of a cell that has none of
    these."""

    least: float
    most: float
    wrong: str

    def holds(self, cell: object) -> bool:
        """Whether the cell is such a number."""
        number = isinstance(cell, int | float) and not isinstance(cell, bool)
        return number and self.least <= cell <= self.most  # type: ignore[operator]


_REWARD = Number(-LARGEST, LARGEST, "missing or not a finite number")
NUMBERS = {
    "weight": Number(0, LARGEST, "missing, negative or not a finite number"),
    "label_confidence": Number(0, 1, "missing or no probability from 0 to 1"),
    "chosen_reward": _REWARD,
    "rejected_reward": _REWARD,
}
