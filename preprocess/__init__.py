"""A driving video and a reference picture in, conditions for the model out."""
