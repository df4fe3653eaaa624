"""Requests from other places: job files and batches, training configurations, hyper-parameters of job services."""
