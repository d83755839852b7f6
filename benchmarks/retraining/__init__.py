"""Which influences foretell retraining: ours, gradients, Gauss–Newton, and kronfluence's EK-FAC."""
