"""What a run finds out about its model on the way, beside the loss."""
