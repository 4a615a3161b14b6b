"""Summaries of data sets, and their verification."""
