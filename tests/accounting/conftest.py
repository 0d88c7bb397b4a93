"""Property tests promise results, not speed: no deadline, whatever else the machine is doing."""

from hypothesis import settings

settings.register_profile("accounting", deadline=None)
settings.load_profile("accounting")
