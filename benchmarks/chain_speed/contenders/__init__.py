"""One contender a file, each with `build(problem, **options)`; run inside `benchmarks.chain_speed.worker` only."""
