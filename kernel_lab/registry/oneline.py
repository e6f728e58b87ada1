"""What somebody else wrote, fit to be shown."""

LONGEST = 200  # characters


def one_line(text: str) -> str:
    """On one line, not too long, and without what a terminal would obey."""
    shown = "".join(character if character.isprintable() else " " for character in text).strip()
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."
