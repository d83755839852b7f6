"""One contender a file, each with `prepare(question)`; run inside `benchmarks.turns` only."""
