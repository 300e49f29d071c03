"""The model's side: conditions in, frames out. Knows nothing of how the conditions are made."""

__version__ = "0.1.0"
