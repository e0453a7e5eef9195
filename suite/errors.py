"""What stops the suite, as one sentence a person can act on."""


class SuiteError(Exception):
    """The message is the sentence; it names the setting to change, if there is one."""
