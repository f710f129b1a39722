"""The parts of tests/fuzzing.py."""
