"""How many random cases tests try: as many as suit CI, or with THOROUGH=1 all."""

import os

THOROUGH = os.environ.get("THOROUGH") == "1"


def cases(usual: int, thorough: int) -> int:
    return thorough if THOROUGH else usual
