"""Turn the headers of a source into one catalog of whole tensors; one module per kind of source."""
