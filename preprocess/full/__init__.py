"""People and whole-body poses from the official checkpoint's two networks, on a GPU."""
