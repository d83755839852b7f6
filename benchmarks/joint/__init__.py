"""What several quantities of one pass of chains cost beside the dearest of them alone."""
