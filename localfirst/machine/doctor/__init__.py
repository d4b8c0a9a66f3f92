"""What is well, what is not, and what to do: a pure function from facts to findings."""

from localfirst.machine.doctor.facts import (
    Engine,
    Facts,
    Finding,
    Key,
    Mirror,
    Model,
    Proof,
    Severity,
    StoreFacts,
)
from localfirst.machine.doctor.report import Report, as_json, examine

__all__ = [
    "Engine",
    "Facts",
    "Finding",
    "Key",
    "Mirror",
    "Model",
    "Proof",
    "Report",
    "Severity",
    "StoreFacts",
    "as_json",
    "examine",
]
