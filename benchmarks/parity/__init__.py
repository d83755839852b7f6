"""Reference trajectories of devinterp on given noise and minibatches: `python -m benchmarks.parity`."""
