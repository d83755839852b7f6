"""What results are asked after they are made: structure of kernels, agreement with labels and trees."""
