"""The teacher: what it sends (signals), and the engines that make it."""

from wfray.teacher.engine import Engine, EngineGone
from wfray.teacher.engines import make_engine, make_service
from wfray.teacher.fingerprint import Fingerprint
from wfray.teacher.service import TeacherService
from wfray.teacher.signals import SignalRequest, Signals, decode_signals
from wfray.teacher.transformers_engine import TransformersEngine

__all__ = [
    "Engine",
    "EngineGone",
    "Fingerprint",
    "SignalRequest",
    "Signals",
    "TeacherService",
    "TransformersEngine",
    "decode_signals",
    "make_engine",
    "make_service",
]
