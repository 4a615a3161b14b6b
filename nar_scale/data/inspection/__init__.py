"""Looking into data sets without changing them: a summary of any shards, and verification of prepared ones."""
