"""Measurements of what people wait for, side by side with what it is compared to; see docs/benchmarks.md."""
