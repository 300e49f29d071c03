"""People, whole-body poses and masks, and a stance editor, on a GPU."""
