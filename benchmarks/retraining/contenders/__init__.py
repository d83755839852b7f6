"""One contender a file, each with `prepare(question, **options)`; run inside `benchmarks.turns` only."""
