"""Preloaded once before grading; each student's process is forked from this state."""

from . import submission

submission.STUDENTS_COPY.update(submission.second_copy())
