"""Loss kernels and Bayesian influences beside the nearest that devinterp offers."""
