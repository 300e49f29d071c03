"""Every error a caller can meet, in one tree. A message says what happened, where, and what to change.

WanAnimateError
├── InvalidInput (also a ValueError)   the request or one of its files; the caller can mend it
│   ├── BadMedia                       a file that is not what its field asks for, or is damaged
│   ├── NoPersonFound                  nobody to follow in the driving video
│   └── NotAvailableYet                a documented option that this version does not carry out
├── SetupFailed                        this machine or its model files
│   ├── NoUsableGpu
│   └── ModelFilesBroken               missing, incomplete, or not what was published
├── OutOfResources                     the request is right, the machine ran out
│   ├── DiskFull
│   └── OutOfMemory
└── Cancelled                          the caller asked to stop
"""


class WanAnimateError(Exception):
    """Base of all errors raised on purpose. `str(error)` is one sentence fit for an end user."""


class InvalidInput(WanAnimateError, ValueError):
    """The request cannot be carried out as it stands."""


class BadMedia(InvalidInput):
    """A video or an image is missing, damaged, or of a kind that cannot be used."""


class NoPersonFound(InvalidInput):
    """No person could be found where one is needed."""


class NotAvailableYet(InvalidInput):
    """The option exists in the contract, but this version cannot carry it out."""


class SetupFailed(WanAnimateError):
    """The app cannot be made ready on this machine."""


class NoUsableGpu(SetupFailed):
    """The chosen model needs a GPU that is not there."""


class ModelFilesBroken(SetupFailed):
    """Model files are missing, incomplete, or differ from what was published."""


class OutOfResources(WanAnimateError):
    """The machine ran out of something while working."""


class DiskFull(OutOfResources):
    """No room left for the output."""


class OutOfMemory(OutOfResources):
    """Host or GPU memory is exhausted."""


class Cancelled(WanAnimateError):
    """The caller asked to stop; nothing is left behind."""
