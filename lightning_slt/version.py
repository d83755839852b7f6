"""Version of the package, apart so that building it imports nothing."""

__version__ = "0.1.0"
