"""The work on model files that commands and servers may ask for, opened to their level."""

from localfirst.engines.base import LocalModel
from localfirst.engines.llamacpp.about import local_model
from localfirst.models.bundle import BundleIndex, Export
from localfirst.models.bundle_read import BundleCheck, Import
from localfirst.models.bundle_read import info as bundle_info
from localfirst.models.chore import Chore
from localfirst.models.locking import Moved, compare, read_file, resolve, write_file
from localfirst.models.pull_job import PullJob, Snapshot
from localfirst.models.pull_plan import PullPlan
from localfirst.models.pulls import PendingPull, pending
from localfirst.models.pulls import remove as remove_pending
from localfirst.models.verify import Report, Verification, remove_orphans, repair

__all__ = [
    "BundleCheck",
    "BundleIndex",
    "Chore",
    "Export",
    "Import",
    "LocalModel",
    "Moved",
    "PendingPull",
    "PullJob",
    "PullPlan",
    "Report",
    "Snapshot",
    "Verification",
    "bundle_info",
    "compare",
    "local_model",
    "pending",
    "read_file",
    "remove_orphans",
    "remove_pending",
    "repair",
    "resolve",
    "write_file",
]
