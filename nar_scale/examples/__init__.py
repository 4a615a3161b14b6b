"""Example data sets, made of what Python packages ship."""
