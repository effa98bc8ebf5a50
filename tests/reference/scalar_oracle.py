"""A second oracle, one element at a time, from the formulas alone: Python integers, numpy fp32 scalars, math.fsum.

It shares no code with `cutefp4.reference` and no vectorisation; the two must agree bit for bit on every recipe.
"""

from __future__ import annotations

import math

import numpy as np

F = np.float32
FLT_MAX = F(3.4028234663852886e38)
GRID = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E4M3 = tuple(
    (b & 7) * 2.0**-9 if b >> 3 == 0 else (8 + (b & 7)) * 2.0 ** ((b >> 3) - 10) for b in range(127)
)  # value of byte b


def nearest(table, y: float) -> int:
    """Index of the nearest entry of an ascending table, ties to the even index, saturating."""
    if y >= table[-1]:
        return len(table) - 1
    return min(range(len(table)), key=lambda i: (abs(table[i] - y), i & 1))


def e4m3(y) -> int:
    """Byte of a non-negative fp32."""
    return nearest(E4M3, float(y))


def sign_bit(y) -> int:
    return 8 if math.copysign(1.0, float(y)) < 0 else 0


def e2m1(y) -> int:
    if math.isnan(y):
        return 7
    return nearest(GRID, abs(float(y))) | sign_bit(y)


def e2m1_dithered(y, r8: int) -> int:
    if math.isnan(y):
        return 7
    magnitude = abs(float(y))
    if magnitude >= 6:
        return 7 | sign_bit(y)
    code = max(i for i in range(7) if GRID[i] <= magnitude)
    step = GRID[code + 1] - GRID[code]
    return (code + (math.floor(256 * (magnitude - GRID[code]) / step) + r8 >= 256)) | sign_bit(y)


def value(code: int):
    return F(-GRID[code & 7] if code & 8 else GRID[code & 7])


def philox(counter: list[int], key: list[int]) -> list[int]:
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def block_bytes(seed: int, offset: int, row: int, block: int) -> list[int]:
    low = 0xFFFFFFFF
    words = philox([offset & low, offset >> 32 & low, block, row], [seed & low, seed >> 32 & low])
    return [w >> 8 * j & 255 for w in words for j in range(4)]


def to_bf16(v) -> np.float32:
    bits = int(F(v).view(np.uint32))
    bits += 0x7FFF + (bits >> 16 & 1)
    return np.uint32(bits & 0xFFFF0000).view(F)


def hadamard(group: list, kind: str, mask: int) -> list:
    signed = [-v if mask >> i & 1 else v for i, v in enumerate(group)]
    if kind == "bf16":
        parity = [[(r & c).bit_count() & 1 for r in range(16)] for c in range(16)]
        sums = (math.fsum(float(-v if p else v) for v, p in zip(signed, row, strict=True)) for row in parity)
        return [to_bf16(F(0.25 * s)) for s in sums]
    v = [F(x) for x in signed]
    for stride in (1, 2, 4, 8):
        v = [v[i] + v[i | stride] if not i & stride else v[i ^ stride] - v[i] for i in range(16)]
    return [F(x * F(0.25)) for x in v]


def s_enc(amax, numerator):
    if amax == 0 or math.isinf(amax):
        return F(1)
    return min(F(numerator) / F(amax), FLT_MAX)


def plain_scale(bamax, amax, recipe):
    """(byte, multiplier) in the three arithmetics."""
    numerator = F(6 * recipe.e4m3_max)
    if recipe.arithmetic == "torchao":
        p = F(amax) / numerator
        p = F(1) if p == 0 or math.isinf(amax) else p
        byte = e4m3(min(max(F(bamax / F(6)) / p, F(2.0**-6)), F(448)))
        return byte, min(F(1) / p, FLT_MAX) / F(E4M3[byte])
    floored = max(amax, F(1e-12)) if recipe.arithmetic == "per_token" else amax
    s = s_enc(floored, numerator)
    byte = e4m3(min(bamax * F(s * (F(1) / F(6))), FLT_MAX))
    if recipe.arithmetic == "per_token":
        return byte, F(0) if byte == 0 else s / F(E4M3[byte])
    return byte, min(F(1) / F(F(E4M3[byte]) * F(F(1) / s)), FLT_MAX)


def candidate(target, bamax, amax, recipe):
    s = s_enc(amax, 6 * recipe.e4m3_max)
    base = F(bamax / F(6)) * s
    byte = e4m3(min(base if target == 6 else F(base * F(1.5)), F(448)))
    return byte, min(F(1) / F(F(E4M3[byte]) * F(F(1) / s)), FLT_MAX)


def line_error(line, byte, multiplier, amax, recipe):
    total = F(0)
    for x in line:
        product = F(value(e2m1(F(x * multiplier))) * F(E4M3[byte]))
        if recipe.four_over_six_error == "strict":
            d = F(F(F(product * amax) / F(6 * recipe.e4m3_max)) - x)
        else:
            d = F(product - F(x * s_enc(amax, 6 * recipe.e4m3_max)))
        total = F(total + (abs(d) if recipe.four_over_six == "mae" else F(d * d)))
    return total


def tree(sums: list):
    v = list(sums)
    for half in (8, 4, 2, 1):
        v = [F(v[i] + v[i + half]) for i in range(half)]
    return v[0]


def maximum(values) -> np.float32:
    return max((abs(F(v)) for v in values if not math.isnan(v)), default=F(0))


def four_is_better(lines, bamax, amax, recipe) -> bool:
    """Decision of one block (one line) or one tile (16 lines, missing ones zero)."""
    err4, err6 = (
        [line_error(line, *candidate(target, bamax, amax, recipe), amax, recipe) for line in lines] for target in (4, 6)
    )
    if recipe.block == "1d":
        return bool(err4[0] < err6[0])
    padding = [F(0)] * (16 - len(lines))
    return bool(tree(err4 + padding) < tree(err6 + padding))


class ScalarCopy:
    """One quantised copy: codes[row][k], scale bytes[row][block], amax per row, decisions[(tile or row, block)]."""

    def __init__(self, values, recipe, seed, offset, decisions=None):
        self.values = [[F(v) for v in row] for row in values]
        self.recipe, self.seed, self.offset = recipe, seed, offset
        per_row = recipe.scaling == "token" and recipe.block == "1d"
        overall = maximum(v for row in self.values for v in row)
        self.amax = [maximum(row) if per_row else overall for row in self.values]
        self.decisions = {} if decisions is None else decisions
        rows, blocks = len(self.values), len(self.values[0]) // 16
        self.codes = [[0] * (16 * blocks) for _ in range(rows)]
        self.scales = [[0] * blocks for _ in range(rows)]
        for row in range(rows):
            for block in range(blocks):
                self._encode(row, block)

    def _lines(self, row: int, block: int) -> list:
        rows = range(row, row + 1)
        if self.recipe.block == "2d":
            first = row // 16 * 16
            rows = range(first, min(first + 16, len(self.values)))
        return [self.values[r][16 * block : 16 * block + 16] for r in rows]

    def _scale(self, row: int, block: int):
        lines, amax = self._lines(row, block), self.amax[row]
        bamax = maximum(v for line in lines for v in line)
        if self.recipe.four_over_six == "none":
            return plain_scale(bamax, amax, self.recipe)
        place = (row // 16 if self.recipe.block == "2d" else row, block)
        if place not in self.decisions:
            self.decisions[place] = four_is_better(lines, bamax, amax, self.recipe)
        return candidate(4 if self.decisions[place] else 6, bamax, amax, self.recipe)

    def _encode(self, row: int, block: int) -> None:
        byte, multiplier = self._scale(row, block)
        self.scales[row][block] = byte
        stochastic = self.recipe.rounding == "stochastic"
        r8 = block_bytes(self.seed, self.offset, row, block) if stochastic else None
        for i in range(16):
            y = F(self.values[row][16 * block + i] * multiplier)
            code = e2m1_dithered(y, r8[i]) if stochastic else e2m1(y)
            self.codes[row][16 * block + i] = code


def scalar_quantize(x, recipe, seed=0, offset=0) -> tuple[ScalarCopy, ScalarCopy]:
    """Both copies of `x`, a list of rows of Python floats; rows and columns multiples of 16."""
    with np.errstate(all="ignore"):
        by_row = ScalarCopy(x, recipe, seed, offset)
        columns = [list(c) for c in zip(*x, strict=True)]
        if recipe.rht != "none":
            columns = [
                [v for g in range(0, len(c), 16) for v in hadamard(c[g : g + 16], recipe.rht, recipe.rht_sign_mask)]
                for c in columns
            ]
        shared = recipe.four_over_six_columnwise == "shared" and recipe.block == "2d"
        decisions = {(b, t): d for (t, b), d in by_row.decisions.items()} if shared else None
        return by_row, ScalarCopy(columns, recipe, seed, offset + 1, decisions)
