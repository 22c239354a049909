"""The teacher: what it sends (signals), and the engines that make it."""

from wfray.teacher.engine import TransformersEngine
from wfray.teacher.signals import Fingerprint, SignalRequest, Signals, decode_signals

__all__ = ["Fingerprint", "SignalRequest", "Signals", "TransformersEngine", "decode_signals"]
