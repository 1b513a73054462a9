"""What is trainable."""
