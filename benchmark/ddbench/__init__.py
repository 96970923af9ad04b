"""ddbench: the benchmark suite for dataset distillation. The command line is `ddbench`; plugins build on `ddbench.api`."""

__version__ = "0.2.0"
