"""Figures of merit: functions with a documented range, unit and both empty cases."""
