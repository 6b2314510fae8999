"""Scans: every pair of many tasks, in batches, on all devices, resumable.

`api` is the entry; `task_records` reads and checks the tasks, `plan` groups the pairs
by padded shape, `profiles` computes what depends on one task alone, `screening` and
`refinement` are the mathematics of the two stages, `device_cache` keeps profiles on the
devices, the stages and `executor` drive the work, `parquet_store` writes it, `result`
reads it.
"""
