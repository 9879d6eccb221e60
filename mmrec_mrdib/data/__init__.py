"""Interactions, item features and batches."""
