"""In-process trainings of the tests are for one device: a machine with several cards shows them one."""

from __future__ import annotations

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
