"""How many random cases tests try: few enough for CI, or all with THOROUGH=1."""

import os

THOROUGH = os.environ.get("THOROUGH") == "1"


def cases(usual: int, thorough: int) -> int:
    return thorough if THOROUGH else usual
