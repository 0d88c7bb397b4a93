"""Large language models made cheaper and faster inside the serving stacks that people already run."""

__version__ = "0.1.0"
