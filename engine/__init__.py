"""What trains on batches."""
