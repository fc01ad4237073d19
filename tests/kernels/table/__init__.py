"""The table of ops: a new op adds a row to its family's module and has the whole contract tested."""

from __future__ import annotations

from . import average, cells, clip, diagonal, grid, inner_model, line, matrix_state, newton, window

FAMILIES = (average, cells, clip, diagonal, grid, inner_model, line, matrix_state, newton, window)
CASES = {case.name: case for family in FAMILIES for case in family.CASES}
