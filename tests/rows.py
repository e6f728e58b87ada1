"""A row of the table as the loop reads it, in the words of a test."""

from dataclasses import dataclass

WORD = 2**64 - 1
NOT_RUN = -(2**63)
SIZE = 96
RESULT = 9


@dataclass(frozen=True)
class Row:
    """A row in the test's words: cells and rows to jump to are numbers, not addresses."""

    number: int
    arguments: tuple[int, ...] = (0,) * 6
    indirect: int = 0
    store: int | None = None
    jump: int | None = None
    tolerate: int = 0

    def words(self, rows: int, cells: int) -> list[int]:
        arguments = [cells + 8 * value if self.indirect >> i & 1 else value for i, value in enumerate(self.arguments)]
        store = 0 if self.store is None else cells + 8 * self.store
        jump = 0 if self.jump is None else rows + SIZE * self.jump
        return [self.number, *arguments, self.indirect, store, NOT_RUN, jump, self.tolerate]

    def packed(self, rows: int, cells: int) -> bytes:
        return b"".join((word & WORD).to_bytes(8, "little") for word in self.words(rows, cells))


def signed(word: int) -> int:
    return word - 2**64 if word >> 63 else word
