"""What a chain-step costs: this package, a peer, and the bare passes that the same chains need."""
