"""DistillSpec: a draft is trained against the target, mostly on what the draft itself writes.

Source: Zhou et al. 2024 (DistillSpec), arXiv:2310.08461.
"""
