"""People, poses, faces and hands on a CPU, from six small models."""
