"""What turns packed bytes into batches of views."""
