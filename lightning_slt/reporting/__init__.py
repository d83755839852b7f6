"""From estimates to what people look at."""
