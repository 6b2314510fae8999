"""The study: the paper's claims on real tasks and encoders.
`python -m benchmarks.study --help`.
"""
