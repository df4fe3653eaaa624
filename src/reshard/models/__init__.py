"""What families of models call their tensors and how they lay them out, as data."""
