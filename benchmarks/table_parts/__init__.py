"""The tables of `benchmarks/tables.py`, by what they are about; each function draws one."""
