"""Reading foreign files: tar headers, arrays, text and tables."""
