"""Answers that attack the grader: small, but endless to build or compare.

`QUICK` and `LONG` are functions, none of which is right whatever is expected; what a program can't
return it forges, by writing to the socket on which its own answer would go. `PRINTED` are programs
on standard input. None may cost the grader more than its process's time.
"""

FORGE = """\
import os, time
def f(a):
    left = memoryview({line} + b'\\n')
    while left: left = left[os.write(3, left):]
    time.sleep(60)
"""


def forged(value: str) -> str:
    """A program that answers with a value's text: an expression of bytes."""
    return FORGE.format(line=f"b'{{\"ok\": true, \"value\": ' + {value} + b'}}'")


QUICK = {
    "fraction of a billion digits": "from fractions import Fraction\n"
    "class F(Fraction):\n    def __str__(self): return '1e1000000000'\ndef f(a): return F(1)",
    "decimal of a billion digits": "from decimal import Decimal\n"
    "def f(a): return Decimal('1E+999999999')",
    "decimals in a list": "from decimal import Decimal\n"
    "def f(a): return [Decimal('-1E+999999999'), Decimal('sNaN')]",
    "forged decimal": forged('b\'{"decimal": "1e999999999999999999"}\''),
    "forged key": forged('b\'{"dict": [[{"decimal": "1e999999999999999999"}, 1]]}\''),
    "forged tags": forged("b'{\"complex\": [{}, []]}'"),
    "forged tag in tag": forged("b'{\"one\": ' * 900 + b'1' + b'}' * 900"),
    "forged error": FORGE.format(line='b\'{"ok": false, "error": [1]}\''),
    "no text": FORGE.format(line="b'\\xff\\xfe'"),
    "deep": "def f(a):\n    x = []\n    for _ in range(40000): x = [x]\n    return x",
    "deep, forged": forged("b'[' * 100000 + b']' * 100000"),
    "own length in bits": "class I(int):\n    def bit_length(self): return 1 << 100\n"
    "def f(a): return I(7 + 1)",
    "own class": "class C:\n    __class__ = dict\n    def items(self): return [(1, C())]\n"
    "def f(a): return C()",
    "a false scalar": "class C:\n    size = 1\n    def item(self): return C()\n"
    "C.__module__ = 'numpy'\ndef f(a): return C()",
    "own text": "class S(str):\n    __eq__ = lambda *a: True\n    __hash__ = str.__hash__\n"
    "    def __len__(self): return 1 << 40\ndef f(a): return S('x')",
    "own parts": "class C(complex):\n    @property\n    def real(self): return self\n"
    "def f(a): return C(7)",
    "long error": "def f(a): raise ValueError('x' * 10**7)",
    "infinite": "def f(a): return [1e308 * 10, -1e308 * 10, float('nan')]",
    "set": "def f(a): return set(range(10**5))",
}
LONG = {  # such as run into a limit, or move tens of megabytes
    "forged fraction": forged('b\'{"fraction": "1e1000000000"}\''),
    "colliding keys": "def f(a): return {k * (2**61 - 1): 1 for k in range(300000)}",
    "forged colliding keys": forged(
        "b'{\"dict\": [' + ','.join("
        "'[{\"int\": \"%x\"}, 1]' % (k * (2**61 - 1)) for k in range(100000)).encode() + b']}'"
    ),
    "integer of 60 million digits": "def f(a): return 1 << 200_000_000",
    "integer as a key": "def f(a): return {1 << 100_000_000: 1}",
    "many integers of 50,000 digits": forged("b'[' + b','.join([b'1' * 49_999] * 1200) + b']'"),
    "decimal of 20 million digits": "from decimal import Decimal\n"
    "def f(a): return Decimal('1' * 20_000_000)",
    "float of 60 million digits": forged("b'1' * 60_000_000 + b'.5e999999999999'"),
    "20 million lists": forged("b'[' + b'[],' * 20_000_000 + b'[]]'"),
    "6 million objects": forged("b'[' + b'{\"a\":{}},' * 6_000_000 + b'[]]'"),
    "very deep, forged": forged("b'[' * 60_000_000"),
    "60 million bytes": FORGE.format(line="b'\\xff' * 60_000_000"),
    "long text": "def f(a): return 'x' * 50_000_000",
    "too long": "def f(a): return 'x' * 80_000_000",
    "faces": "def f(a): return '\\U0001f600' * 5_000_000",
    "a list that grows": "class I(int):\n    def bit_length(self):\n        x.append(I(1))\n"
    "        return 3\nx = [I(1)]\ndef f(a): return x",
    "a list without end": "class L(list):\n    def __iter__(self):\n"
    "        while True: yield 1\ndef f(a): return L()",
    "a dictionary without end": "class D(dict):\n    def items(self):\n"
    "        while True: yield 1, 1\ndef f(a): return D()",
    "a class without end": "class C:\n    @property\n    def __class__(self):\n"
    "        while True: pass\ndef f(a): return C()",
    "a float without end": "class F(float):\n    def __float__(self):\n"
    "        while True: pass\ndef f(a): return F(7)",
    "a scalar without end": "class C:\n    size = 1\n    def item(self):\n"
    "        while True: pass\nC.__module__ = 'numpy'\ndef f(a): return C()",
    "an error without end": "class E(Exception):\n    def __str__(self):\n"
    "        while True: pass\ndef f(a): raise E",
    "doubling": "def f(a):\n    x = [7]\n    for _ in range(40): x = [x, x]\n    return x",
    "long forged error": FORGE.format(
        line="b'{\"ok\": false, \"error\": \"' + b'x ' * 30_000_000 + b'\"}'"
    ),
    "drops": "import os, time\ndef f(a):\n    while True: os.write(3, b' '); time.sleep(0.01)",
}

PRINTED = {
    "no end": "while True: print('y' * 1000)",
    "no end of a line": "import sys\nwhile True: sys.stdout.write('é' * 1000000)",
    "no end, by descriptor": "import os\nwhile True: os.write(1, b'y' * 1000000)",
    "faces": "print('\\U0001f600' * 7_000_000)",
    "control characters": "print('\\x01' * 9_000_000)",
    "combining": "print('a' + '\\u0301' * 9_000_000)",
    "surrogates": "import sys\nsys.stdout.write('\\ud800' * 5_000_000)",
    "no text": "import os\nfor _ in range(31): os.write(1, b'\\xff' * 1000000)",
    "large": "print('1e999999999 1e999999999')",
    "too large": "print('1e999999999999999999')",
    "many numbers": "print('7 ' * 15_000_000)",
    "a long number": "print('7' * 30_000_000)",
    "lines": "print('\\n' * 30_000_000 + 'x')",
    "blanks": "print(' ' * 30_000_000 + 'x')",
}
