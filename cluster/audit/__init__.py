"""The decision log: one record per answer, never the text -> files of a day -> Parquet -> records.

`write` appends, `compact` turns days that are over into Parquet, and `read` gives back both.
"""
