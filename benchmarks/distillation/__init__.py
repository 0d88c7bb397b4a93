"""What distillation of a draft is worth: ``python -m benchmarks.distillation``."""
