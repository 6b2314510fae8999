"""Files that were valid and are no more: each reader gives the values that were
written, or raises ValueError in one line that names the file.

`python -m tests.fuzz --minutes 10 [--seed N]` tries more of them than the suite.
"""
