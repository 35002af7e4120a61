"""What can go wrong while scenes are rendered or written, and with which exit code the command line ends."""

from __future__ import annotations


class SceneError(Exception):
    """Root of the errors a caller can cause; the message says what was given and what is allowed."""

    exit_code: int = 1


class SceneArgumentError(SceneError):
    """An argument is out of range, or a target exists, has no folder or has the wrong ending."""

    exit_code = 2


class SceneEnvironmentError(SceneError):
    """OpenCV is not installed, or nothing here can encode video; the message carries the line that installs it."""

    exit_code = 5
