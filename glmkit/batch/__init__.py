"""Batch jobs: a file of rows in, a file of answers out, resumable after any interruption."""
