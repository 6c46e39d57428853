"""The cells of `sslguard.bench.cells`, under the name that these benchmarks import."""

from sslguard.bench.cells import Cell, Outcome, Work, chosen, path_of, read_cells, run_cells

__all__ = ["Cell", "Outcome", "Work", "chosen", "path_of", "read_cells", "run_cells"]
