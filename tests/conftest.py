"""Property tests promise results, not speed: no deadline, whatever else the machine is doing."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
