"""Formats of text: plain text, JSON and tables, each of them also compressed."""
