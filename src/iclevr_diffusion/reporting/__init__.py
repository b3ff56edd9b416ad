"""Reports that compare runs."""
