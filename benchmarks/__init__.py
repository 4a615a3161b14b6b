"""Side-by-side measurements, one file a question; figures in RESULTS.md."""
