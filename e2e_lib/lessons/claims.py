"""What a notebook claims and checks: exact facts, which must hold, and what is measured, which may not."""


def confirm(claim: str, holds: bool, numbers: str) -> None:
    """Prints an exact fact, true for all parameters, and its numbers. Raises AssertionError if it fails."""
    assert holds, f"this should hold and does not: {claim} ({numbers})"
    print(f"✓ {claim}: {numbers}")


def observe(claim: str, holds: bool, numbers: str) -> None:
    """Prints whether what was expected of a measurement holds, and its numbers.

    It may not hold, by chance or for other parameters than the notebook's own: that is a finding, no error.
    """
    print(f"{'✓' if holds else '✗ does not hold here:'} {claim}: {numbers}")
