"""Define what a conversion writes; one module per kind of target."""
