"""The yardstick: recordings of the official Wan2.2 code beside what this project computes from the same inputs."""
