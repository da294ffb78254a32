"""Whole numbers, rounded."""


def ceil_div(total: int, part: int) -> int:
    """`total / part`, rounded up: how many parts of at most this size hold all of it."""
    return -(-total // part)
