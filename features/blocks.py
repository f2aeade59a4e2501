"""Blocks: runs of rows that fill whole chunks, the unit of work, writing, resuming and checking."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """Rows `start` to `stop` (exclusive) of a store."""

    number: int
    start: int
    stop: int

    @property
    def rows(self) -> range:
        return range(self.start, self.stop)


def plan(rows: int, block: int) -> list[Block]:
    """Cut `rows` rows into blocks of `block` rows; the last may be shorter."""
    return [
        Block(number, start, min(start + block, rows))
        for number, start in enumerate(range(0, rows, block))
    ]
