"""These tests run on the stand-in of the driver alone, in a process of their own: see `test_stand_in`."""

from fake_driver.stand_in import here

collect_ignore_glob = [] if here() else ["test_*.py"]
