"""Settings for all tests."""

from hypothesis import settings

# Machines are shared and slow at times; a test that takes long is not thereby wrong.
settings.register_profile("kvload", deadline=None)
settings.load_profile("kvload")
