"""Turn steps into part receipts."""
