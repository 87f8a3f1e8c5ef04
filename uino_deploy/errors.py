"""User errors: what happened, what to do about it, and the exit code.

UinoDeployError            1  (never raised itself)
├── CheckFailed            1  a comparison, budget or gate failed
├── InputError             2  an argument, image, mask, support, checkpoint or bundle is wrong
│   ├── BundleError        2  a bundle is damaged, incompatible, or reaches outside its folder
│   ├── CheckpointError    2  a checkpoint has another architecture, or is truncated or unreadable
│   ├── SignatureError     2  a required signature is missing, or another's
│   └── OutputExists       2  an output exists already and --force was not given
├── DependencyError        3  a package, provider, driver, device or room for files is missing
├── CudaError              3  a call of the CUDA runtime failed on a GPU that exists
└── BuildError             4  an export, an engine or a kernel could not be built

A signal ends a command with 128 and its number: 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM.
What is missing and not needed is a `Degraded` warning, one line: the work goes on without it.
"""


class Degraded(UserWarning):
    """Something that the work does not need is missing here: file modes, locks, a cache."""


class UinoDeployError(Exception):
    """A user error: what happened, in one line; `hint` says what to do about it."""

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        """Return what happened and the hint, if there is one, on one line."""
        return f"{self.what}; {self.hint}" if self.hint else self.what


class CheckFailed(UinoDeployError):
    """A comparison, budget or gate failed."""


class InputError(UinoDeployError):
    """An argument or an input file is wrong."""

    exit_code = 2


class BundleError(InputError):
    """A bundle is damaged, incompatible, or names a path outside its folder."""


class CheckpointError(InputError):
    """A checkpoint is unreadable or has another architecture."""


class SignatureError(InputError):
    """A required signature is missing, or is not of these bytes by the required key."""


class OutputExists(InputError):
    """An output exists already."""


class DependencyError(UinoDeployError):
    """A requested package, provider, driver or device is missing, or room for temporary files."""

    exit_code = 3


class CudaError(UinoDeployError):
    """A call of the CUDA runtime failed on a GPU that exists: a fault, or too little memory."""

    exit_code = 3


class BuildError(UinoDeployError):
    """An export, an engine or a kernel could not be built."""

    exit_code = 4
