"""What makes the networks fast, one technique a file. Each can be left out; none changes what is computed."""
