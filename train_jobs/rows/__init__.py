"""A CSV, JSONL or Parquet file -> its rows, the broken ones with what is wrong with them."""
