"""Text from foreign files, made safe to show."""


def printable(name: str) -> str:
    """Return a name from a foreign file without the control characters that could fool a terminal."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in name)
