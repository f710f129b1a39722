"""The parts of benchmarks/fuzzing.py."""
