"""Demo, benchmarks and research simulations over the same code that organizations run."""
