"""Train the student with soft targets from the auxiliary, its moving average."""
