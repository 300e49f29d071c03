"""What every stage leans on: errors, the job, model files."""
