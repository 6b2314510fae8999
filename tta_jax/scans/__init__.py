"""Scans: every pair of many tasks, in batches, on all devices of one or more machines,
resumable.

`api` is the entry; `cards` reads and checks the tasks, `plan` lays the pairs out in
buckets of one shape, `profiles` does once what depends on one task alone, `screen` and
`refine` are the mathematics of the two stages, `tables` holds profiles on the devices,
`stages` and `run` drive the work, `store` writes Parquet, `result` reads it.
"""
