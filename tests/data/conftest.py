"""A loaded machine makes single examples slow: time limits are the test run's business, not hypothesis's."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
