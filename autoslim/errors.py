"""What a user can cause, each reported as one line: the value, the rule and the way out."""


class AutoSlimError(Exception):
    """Base of every error that a user's input can cause; the command line prints it and exits with 1."""


class ModelError(AutoSlimError):
    """A network cannot be built, traced or slimmed as asked."""


class ConfigError(AutoSlimError):
    """A channel configuration or a search space does not fit its format or its model."""


class TargetError(AutoSlimError):
    """A budget cannot be read or cannot be met."""


class DataError(AutoSlimError):
    """A data set cannot be found, read or split as asked."""


class RunError(AutoSlimError):
    """A run folder or checkpoint is missing, foreign, damaged or cannot be written."""
