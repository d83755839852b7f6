"""The TensorBoard tab, and the same views in one HTML file; ``lightning_slt_tensorboard`` is its entry point."""
