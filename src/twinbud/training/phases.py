"""Names of the phases of a run that come before its last one; each has a checkpoint folder of its own."""

from __future__ import annotations

TUNING_PHASE = "tuning"
"""Fine-tuning of the teacher (``runs.tuning``)."""
FIRST_PHASE = "first-phase"
"""Training of the frozen auxiliary of ``tf-kd-self`` (``training.two_phase``)."""
RECOVERY_PHASES = {"student": "recovery-student", "auxiliary": "recovery-auxiliary"}
"""Recovery of student and auxiliary (``recovery.stage``)."""
PHASES = (TUNING_PHASE, FIRST_PHASE, *RECOVERY_PHASES.values())
